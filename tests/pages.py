"""The repository's Markdown pages: their fenced blocks, inline code and shell commands."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

ADDRESS = "http://127.0.0.1:8000"
"""The service's address in the pages' programs."""

README, CONFIGS_README = ROOT / "README.md", ROOT / "configs" / "README.md"
PAGES = [README, CONFIGS_README, *(ROOT / folder / "README.md" for folder in ("serve_app", "tests"))]

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:camera-edit|serve|python -m|pytest|pip|pipx|ruff|mypy) ")


def blocks(page: Path, language: str | None = None) -> list[str]:
    """The contents of the fenced blocks: all, or those of one language."""
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
    """The inline code of the prose, each piece on one line."""
    return [" ".join(text.split()) for text in _INLINE.findall(prose(page))]


def commands(page: Path) -> Iterator[str]:
    """The commands in shell blocks and inline code, `a && b` as two; programs that call the service are left out."""
    lines = [line for text in blocks(page, "bash") if text not in programs("bash") for line in text.splitlines()]
    for line in [*lines, *(text for text in inline(page) if _COMMAND.match(text))]:
        yield from (part.strip() for part in re.split(r"&&", line))
