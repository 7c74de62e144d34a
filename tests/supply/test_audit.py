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


def fake_pip_audit(folder: Path, report: str) -> str:
    """A program that prints this report as pip-audit does."""
    script = folder / "pip-audit"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{report}\nEND\n")
    script.chmod(0o755)
    return str(script)


def test_every_pinned_package_and_its_dependencies_are_audited() -> None:
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
        assert versions.get(known.package) == known.version, f"{known.id}: review it, then correct or remove the entry"
        assert len(known.reason) > 20, f"{known.id}: explain why it does not affect the service"


def test_findings_are_read_under_all_their_names() -> None:
    assert found(REPORT) == [FINDING]


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_an_explained_finding_is_no_problem(name: str) -> None:
    assert problems([FINDING], [Known(name, "pillow", "1.0", "reason")]) == []


@pytest.mark.parametrize(
    "known", [("PYSEC-2", "pillow", "1.0"), ("PYSEC-1", "numpy", "1.0"), ("PYSEC-1", "pillow", "1")]
)
def test_an_explanation_of_another_finding_does_not_count(known: tuple[str, str, str]) -> None:
    messages = problems([FINDING], [Known(*known, "reason")])
    assert messages[0] == "unexplained: pillow 1.0: CVE-1, PYSEC-1"
    assert messages[1].startswith("no longer found: ")


@pytest.mark.parametrize(
    "report",
    [{"dependencies": []}, {"dependencies": [*REPORT["dependencies"], {"name": "x", "skip_reason": "not found"}]}],
)
def test_a_package_left_out_is_no_clean_result(report: dict[str, object]) -> None:
    with pytest.raises(NotAudited, match="could not be audited"):
        found(report)


@pytest.mark.parametrize(
    ("report", "status", "message"),
    [
        (json.dumps(REPORT), 1, "unexplained: pillow 1.0: CVE-1, PYSEC-1"),
        (json.dumps({"dependencies": REPORT["dependencies"][1:]}), 0, "no finding without an explanation"),
        ("no connection", 2, "not audited: "),
    ],
)
def test_exit_status(
    report: str,
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nothing_known = tmp_path / "known.toml"
    nothing_known.write_text("")
    monkeypatch.setattr(audit, "KNOWN_FILE", nothing_known)
    assert audit.main(["--pip-audit", fake_pip_audit(tmp_path, report)]) == status
    streams = capsys.readouterr()
    assert message in streams.out + streams.err
