"""An environment in which the doctor finds nothing of this machine's user."""

from pathlib import Path

import pytest

from serve_app.ingress.auth import API_KEYS, OPERATOR_KEYS


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in (API_KEYS, OPERATOR_KEYS):
        monkeypatch.delenv(source.variable, raising=False)
        monkeypatch.delenv(source.file_variable, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("CAMERA_EDIT_CACHE", str(tmp_path / "cache"))
