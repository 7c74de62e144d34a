"""Fixtures that many tests share: the tiny checkpoint and the settings that the shipped tiny file has."""

from pathlib import Path

import pytest
import yaml

from serve_app.config import AppSettings

ROOT = Path(__file__).parent.parent
RANDOM_FILE = ROOT / "configs" / "random-cpu.yaml"


@pytest.fixture(scope="session")
def tiny_settings() -> AppSettings:
    """The application's settings in configs/random-cpu.yaml."""
    return settings_in(RANDOM_FILE)


def settings_in(file: Path) -> AppSettings:
    """The application's settings in a Serve file."""
    return AppSettings.model_validate(yaml.safe_load(file.read_text())["applications"][0]["args"])
