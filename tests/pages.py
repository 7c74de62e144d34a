"""The repository's pages: their fenced blocks, and the commands and links in them."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

ADDRESS = "http://127.0.0.1:8000"
"""Where the service listens in the pages' programs."""

README = ROOT / "README.md"
PAGES = [README, *(ROOT / folder / "README.md" for folder in ("configs", "serve_app", "tests"))]

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:camera-edit|serve|python -m|pytest|pip|pipx|ruff|mypy) ")


def blocks(page: Path, language: str | None = None) -> list[str]:
    """The contents of the fenced blocks, of one language if it is named."""
    return [text for found, text in _FENCED.findall(page.read_text()) if language in (None, found)]


def languages(page: Path) -> set[str]:
    return {found for found, _ in _FENCED.findall(page.read_text())}


def programs(language: str) -> list[str]:
    """README's programs that call the service."""
    return [text for text in blocks(README, language) if ADDRESS in text]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCED.sub("", page.read_text())


def inline(page: Path) -> list[str]:
    """The code within the prose, on one line each."""
    return [" ".join(text.split()) for text in _INLINE.findall(prose(page))]


def commands(page: Path) -> Iterator[str]:
    """Each command of the shell blocks and of the prose, `a && b` as two, but for programs that call the service."""
    lines = [line for text in blocks(page, "bash") if text not in programs("bash") for line in text.splitlines()]
    for line in [*lines, *(text for text in inline(page) if _COMMAND.match(text))]:
        yield from (part.strip() for part in re.split(r"&&", line))
