"""Known vulnerabilities of what the service installs: `pipx install pip-audit`, then `python -m tests.supply.audit`.

Runs pip-audit on every package that the pinned dependencies install in this environment, at its installed version, and
compares its findings with the explanations in known_vulnerabilities.toml.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

KNOWN_FILE = Path(__file__).with_name("known_vulnerabilities.toml")
PROJECT_FILE = Path(__file__).parent.parent.parent / "pyproject.toml"


class NotAudited(Exception):
    """pip-audit returned no report, or not on every package."""


@dataclass(frozen=True)
class Known:
    """An explained finding."""

    id: str
    package: str
    version: str
    reason: str


@dataclass(frozen=True)
class Found:
    """A finding of pip-audit, by all its names."""

    package: str
    version: str
    names: frozenset[str]

    def explained_by(self, known: Known) -> bool:
        return known.id in self.names and (known.package, known.version) == (self.package, self.version)

    def __str__(self) -> str:
        return f"{self.package} {self.version}: {', '.join(sorted(self.names))}"


def read_known() -> list[Known]:
    """The explanations.

    Raises:
        TypeError: an entry lacks a key, or has an unknown one.
    """
    return [Known(**entry) for entry in tomllib.loads(KNOWN_FILE.read_text()).get("finding", [])]


def installed(requirements: Iterable[str]) -> dict[str, str]:
    """Every package that the requirements install, with its version here; environment markers are evaluated."""
    versions: dict[str, str] = {}
    pending = [(Requirement(each), "") for each in requirements]
    seen = set()
    while pending:
        requirement, extra = pending.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for each in ("", *requirement.extras):
            if (name, each) not in seen:
                seen.add((name, each))
                versions[name] = _version(name)
                pending += [(Requirement(line), each) for line in distribution(name).requires or []]
    return versions


def _version(name: str) -> str:
    try:
        # Without the local part: torch's "+cpu" is a build, not a release that advisories list.
        return distribution(name).version.partition("+")[0]
    except PackageNotFoundError as problem:
        raise NotAudited(f"{name} is not installed here, so its version is unknown.") from problem


def audited(versions: Mapping[str, str], pip_audit: str = "pip-audit") -> dict[str, Any]:
    """pip-audit's report on these versions.

    Raises:
        NotAudited: it could not be run, or could not reach its service.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(f"{name}=={version}\n" for name, version in sorted(versions.items())))
        file.flush()
        command = [pip_audit, "--requirement", file.name, "--no-deps", "--disable-pip", "--format", "json"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            report: dict[str, Any] = json.loads(done.stdout)
        except (OSError, ValueError, subprocess.TimeoutExpired) as problem:
            raise NotAudited(f"{pip_audit} gave no report: {problem}") from problem
    return report


def found(report: Mapping[str, Any]) -> list[Found]:
    """The findings in a report.

    Raises:
        NotAudited: a package was skipped, as an index without vulnerability data skips all.
    """
    packages = report["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if skipped or not packages:
        raise NotAudited(f"{len(skipped)} of {len(packages)} packages could not be audited: {', '.join(skipped[:5])} …")
    return [
        Found(canonicalize_name(package["name"]), package["version"], frozenset((each["id"], *each["aliases"])))
        for package in packages
        for each in package["vulns"]
    ]


def problems(findings: Sequence[Found], known: Sequence[Known]) -> list[str]:
    """Findings without an explanation, and explanations without a finding."""
    unexplained = [f"unexplained: {each}" for each in findings if not any(map(each.explained_by, known))]
    stale = [f"no longer found: {one}" for one in known if not any(each.explained_by(one) for each in findings)]
    return [*unexplained, *stale]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.supply.audit", description=__doc__.split("\n")[0])
    parser.add_argument("--pip-audit", default="pip-audit", help="path of the program (default: found on PATH)")
    options = parser.parse_args(arguments)
    try:
        versions = installed(tomllib.loads(PROJECT_FILE.read_text())["project"]["dependencies"])
        wrong = problems(found(audited(versions, options.pip_audit)), read_known())
    except NotAudited as problem:
        print(f"not audited: {problem}", file=sys.stderr)
        return 2
    print("\n".join(wrong) or f"{len(versions)} packages, no finding without an explanation")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
