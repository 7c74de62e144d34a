"""The list of explained findings, and the script that compares it with what pip-audit finds."""

import json
import tomllib
from pathlib import Path

import pytest

from tests.supply import audit
from tests.supply.audit import Found, Known, NotAudited, found, installed, problems, read_known

REPORT = {
    "dependencies": [
        {"name": "Pillow", "version": "1.0", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": []}]},
        {"name": "numpy", "version": "2.0", "vulns": []},
    ]
}
FINDING = Found("pillow", "1.0", frozenset({"PYSEC-1", "CVE-1"}))


def pinned() -> list[str]:
    requirements: list[str] = tomllib.loads(audit.PROJECT_FILE.read_text())["project"]["dependencies"]
    return requirements


def stand_in(folder: Path, report: str) -> str:
    """A program that answers as pip-audit would."""
    script = folder / "pip-audit"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{report}\nEND\n")
    script.chmod(0o755)
    return str(script)


def test_every_pinned_package_and_what_it_brings_is_asked_about() -> None:
    versions = installed(pinned())
    for requirement in pinned():
        name, _, version = requirement.partition("==")
        assert versions[name.partition("[")[0]] == version
    assert {"starlette", "uvicorn", "jinja2"} <= versions.keys()  # of fastapi, of ray's extra `serve`, of torch
    assert not {"pytest", "ruff", "scikit-image"} & versions.keys()


def test_a_package_that_is_not_installed_is_no_clean_result() -> None:
    with pytest.raises(NotAudited, match="no-such-package is not installed"):
        installed(["no-such-package==1"])


def test_each_explanation_is_about_a_version_that_is_installed() -> None:
    versions = installed(pinned())
    for known in read_known():
        assert versions.get(known.package) == known.version, f"{known.id}: look at it anew, then mend or drop the entry"
        assert len(known.reason) > 20, f"{known.id}: say why it does not concern us"


def test_findings_are_read_under_all_their_names() -> None:
    assert found(REPORT) == [FINDING]


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_an_explained_finding_is_no_problem(name: str) -> None:
    assert problems([FINDING], [Known(name, "pillow", "1.0", "reason")]) == []


@pytest.mark.parametrize(
    "known", [("PYSEC-2", "pillow", "1.0"), ("PYSEC-1", "numpy", "1.0"), ("PYSEC-1", "pillow", "1")]
)
def test_another_findings_explanation_is_none(known: tuple[str, str, str]) -> None:
    told = problems([FINDING], [Known(*known, "reason")])
    assert told[0] == "unexplained: pillow 1.0: CVE-1, PYSEC-1"
    assert told[1].startswith("no longer found: ")


@pytest.mark.parametrize(
    "report",
    [{"dependencies": []}, {"dependencies": [*REPORT["dependencies"], {"name": "x", "skip_reason": "not found"}]}],
)
def test_a_package_left_out_is_no_clean_result(report: dict[str, object]) -> None:
    with pytest.raises(NotAudited, match="could not be audited"):
        found(report)


@pytest.mark.parametrize(
    ("report", "status", "told"),
    [
        (json.dumps(REPORT), 1, "unexplained: pillow 1.0: CVE-1, PYSEC-1"),
        (json.dumps({"dependencies": REPORT["dependencies"][1:]}), 0, "no finding without an explanation"),
        ("no connection", 2, "not audited: "),
    ],
)
def test_the_exit_status_tells(
    report: str,
    status: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nothing_known = tmp_path / "known.toml"
    nothing_known.write_text("")
    monkeypatch.setattr(audit, "KNOWN_FILE", nothing_known)
    assert audit.main(["--pip-audit", stand_in(tmp_path, report)]) == status
    streams = capsys.readouterr()
    assert told in streams.out + streams.err
