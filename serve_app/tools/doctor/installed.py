"""Checks Python and the installed packages against the package's own metadata.

This file uses the standard library alone: it has to run where the wrong Python or a missing package stops the others.
"""

import re
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from serve_app.tools.doctor.finding import Finding

PACKAGE = "qwen-camera-edit"
REINSTALL = "pip install -e ."
_PIN = re.compile(r"(?P<name>[\w.-]+)(\[[\w,]+\])?==(?P<version>[\w.]+)(; ?extra == ['\"](?P<extra>\w+)['\"])?")


def check_python(running: tuple[int, ...], accepted: str) -> Finding:
    """Compare a version such as (3, 11, 7) with a specifier such as `>=3.11,<3.13`."""
    number = ".".join(map(str, running))
    low, high = (_version(bound) for bound in _bounds(accepted))
    if low <= running[:2] < high:
        return Finding("Python", number)
    wanted = ".".join(map(str, low))
    fix = f"python{wanted} -m venv .venv && . .venv/bin/activate && {REINSTALL}"
    return Finding("Python", f"{number} is not supported, {accepted} is; nothing else was checked", fix)


def _bounds(accepted: str) -> tuple[str, str]:
    parts = dict(re.findall(r"(>=|<)\s*([\d.]+)", accepted))
    return parts[">="], parts["<"]


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def accepted_python() -> str:
    """The installed package's specifier of Python versions; that of this source where it is not installed."""
    try:
        return metadata(PACKAGE)["Requires-Python"]
    except PackageNotFoundError:
        return ">=3.11,<3.13"


def pinned(extra: str = "") -> dict[str, str]:
    """The versions that the package pins, by name: of its dependencies, or of one of its extras."""
    try:
        lines = requires(PACKAGE) or []
    except PackageNotFoundError:
        return {}
    pins = [match for line in lines if (match := _PIN.fullmatch(line))]
    return {pin["name"]: pin["version"] for pin in pins if (pin["extra"] or "") == extra}


def missing(pins: dict[str, str], installed: Callable[[str], str] = version) -> list[str]:
    """Those of the pinned packages that are not installed."""
    return [name for name in pins if _installed(name, installed) is None]


def check_packages(
    pins: dict[str, str], installed: Callable[[str], str] = version, reinstall: str = REINSTALL
) -> Finding:
    """Compare the installed versions with the pinned ones. A local part such as `+cpu` does not count."""
    if not pins:
        return Finding("packages", f"{PACKAGE} is not installed in this Python", reinstall)
    faults = list(_package_faults(pins, installed))
    if not faults:
        return Finding("packages", f"{len(pins)} at their pinned versions")
    return Finding("packages", "; ".join(faults), reinstall)


def _package_faults(pins: dict[str, str], installed: Callable[[str], str]) -> Iterator[str]:
    for name, wanted in pins.items():
        found = _installed(name, installed)
        if found is None:
            yield f"{name} {wanted} is not installed"
        elif found.partition("+")[0] != wanted:
            yield f"{name} is {found}, not {wanted}"


def _installed(name: str, installed: Callable[[str], str]) -> "str | None":
    try:
        return installed(name)
    except PackageNotFoundError:
        return None
