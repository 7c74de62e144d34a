"""The tables of limits in configs/README.md name each limit, with its default."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from serve_app.config import AppSettings, Settings
from tests.conftest import ROOT

PAGE = ROOT / "configs" / "README.md"
SECTIONS = ("limits", "jobs", "editor", "fetch", "rewriter")
"""The settings of these, numbers all, are limits."""

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
SERVE_APP = ROOT / "serve_app"
CONSTANT_FILES = (
    *sorted((SERVE_APP / "ingress").rglob("*.py")),
    *sorted((SERVE_APP / "edits").rglob("*.py")),
    SERVE_APP / "jobs" / "webhook.py",
    SERVE_APP / "rewriter" / "endpoint.py",
)
_CONSTANT = re.compile(r"^((?:MAX|MIN)_\w+(?:, \w+)?)\b.*? = ", re.MULTILINE)


def rows() -> list[list[str]]:
    section = PAGE.read_text().partition("\n## Limits\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def documented() -> dict[str, set[float | None]]:
    """The defaults of each setting and constant. One may stand in several rows."""
    found: dict[str, set[float | None]] = {}
    for _, default, name, _ in rows():
        if name.startswith("`"):
            found.setdefault(name.strip("`"), set()).add(number(default))
    return found


def number(text: str) -> float | None:
    if text.startswith("null"):
        return None
    amount, _, unit = text.partition(" ")
    digits = amount.replace(",", "")
    return (float(digits) if "." in digits else int(digits)) * UNITS.get(unit, 1)


def settings_of(name: str) -> type[Settings]:
    annotation = AppSettings.model_fields[name].annotation
    kinds = (annotation, *get_args(annotation))  # the rewriter may be None
    (found,) = [each for each in kinds if isinstance(each, type) and issubclass(each, Settings)]
    return found


def settings() -> Iterator[tuple[str, Any]]:
    for section in SECTIONS:
        for name, field in settings_of(section).model_fields.items():
            if {int, float} & {field.annotation, *get_args(field.annotation)}:
                yield f"{section}.{name}", field.default


def constants() -> Iterator[tuple[str, Any]]:
    for path in CONSTANT_FILES:
        names = [each for line in _CONSTANT.findall(path.read_text()) for each in line.split(", ")]
        module = importlib.import_module(module_name(path)) if names else None
        yield from ((name, getattr(module, name)) for name in names)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def serve_options() -> Iterator[tuple[str, Any]]:
    (application,) = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"]
    for deployment in application["deployments"]:
        for option in ("max_ongoing_requests", "max_queued_requests"):
            if option in deployment:
                yield f"{deployment['name']}.{option}", deployment[option]


def limits() -> dict[str, Any]:
    return {**dict(settings()), **dict(constants()), **dict(serve_options())}


def test_each_limit_is_documented_and_no_other() -> None:
    assert documented().keys() == limits().keys()


@pytest.mark.parametrize("name", sorted(limits()))
def test_the_documented_default_is_the_real_one(name: str) -> None:
    assert documented()[name] == {limits()[name]}


def test_each_limit_says_what_is_beyond_it() -> None:
    assert [row for row in rows() if not (row[0] and row[1] and row[3])] == []
