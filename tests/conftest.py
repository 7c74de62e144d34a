"""Pytest hooks for all tests, and the settings of configs/random-cpu.yaml as a fixture."""

import gc
import logging
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config import AppSettings
from tests.units import UnitScheduling, rank

ROOT = Path(__file__).parent.parent
RANDOM_FILE = ROOT / "configs" / "random-cpu.yaml"


def pytest_configure() -> None:
    # torch reads it at import. On tensors this small, threads wait for each other ten times as long as they work.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing that the imports make is garbage. They take half the time if nobody looks for it, then or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: rank(item.nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> UnitScheduling:
    return UnitScheduling(config, log)


@pytest.fixture(autouse=True)
def logs_reach_pytest(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A deployment made in this process joins the package's logger to Serve's, but `caplog` reads the root's."""
    monkeypatch.setattr(logging.getLogger("serve_app"), "propagate", True)
    yield
    assert logging.root.manager.disable == logging.NOTSET, "this test disables logging for those that follow"


@pytest.fixture(scope="session")
def tiny_settings() -> AppSettings:
    """The application's settings in configs/random-cpu.yaml."""
    return settings_in(RANDOM_FILE)


def settings_in(file: Path) -> AppSettings:
    """The application's settings in a Serve config file."""
    return AppSettings.model_validate(yaml.safe_load(file.read_text())["applications"][0]["args"])
