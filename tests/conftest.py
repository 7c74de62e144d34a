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
    args = yaml.safe_load(RANDOM_FILE.read_text())["applications"][0]["args"]
    return AppSettings.model_validate(args)
