"""A running service, and a user's folder without settings."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.config import AppSettings
from tests.tools.edit.running import RunningService, running_service


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is also the user's home."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    for variable in ("CAMERA_EDIT_URL", "CAMERA_EDIT_API_KEY", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    return folder


@pytest.fixture
def service(
    user: Path, tmp_path: Path, tiny_settings: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunningService]:
    """A service without API keys, which the environment names."""
    with running_service(tmp_path, tiny_settings) as service:
        monkeypatch.setenv("CAMERA_EDIT_URL", service.url)
        yield service
