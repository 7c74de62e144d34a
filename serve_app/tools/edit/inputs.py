"""Which pictures to edit: files, folders, patterns, standard input, or a list of files and prompts."""

import csv
import glob
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import UsageError

STDIN = "-"
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".heic", ".heif", ".avif"})
"""Of the files that are taken from a folder. A file that is named is sent whatever its suffix."""

_COLUMNS = {"file", "prompt"}


@dataclass(frozen=True)
class Source:
    """A picture to edit and its instruction. `data`: its bytes, if they are not in a file."""

    path: Path
    prompt: str
    data: bytes | None = None

    def read(self) -> bytes:
        """The picture's file.

        Raises:
            OSError: it cannot be read.
        """
        return self.path.read_bytes() if self.data is None else self.data


def find_sources(pictures: Sequence[str], list_file: Path | None, prompt: str | None) -> list[Source]:
    """The pictures of the command line, in order.

    Raises:
        UsageError: there is none, one is missing, or the list cannot be used.
    """
    if list_file is None:
        sources = [source for each in pictures for source in _expand(each, prompt or "")]
        if not sources:
            raise UsageError("No picture: name files, folders, a pattern, or - for standard input; or give --list.")
        return sources
    if pictures or prompt is not None:
        raise UsageError("--list names the pictures and their prompts: leave out PICTURE and --prompt.")
    return _read_list(list_file)


def _expand(name: str, prompt: str) -> Iterator[Source]:
    if name == STDIN:
        yield _read_stdin(prompt)
        return
    path = Path(name)
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if _is_picture(each))
        if not files:
            raise UsageError(f"{name}: the folder has no pictures. Their names end in {', '.join(sorted(SUFFIXES))}.")
    elif path.exists():
        files = [path]
    else:
        files = sorted(Path(each) for each in glob.glob(name, recursive=True) if Path(each).is_file())
        if not files:
            what = "no file matches this pattern" if glob.has_magic(name) else "no such file or folder"
            raise UsageError(f"{name}: {what}.")
    yield from (Source(file, prompt) for file in files)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _read_stdin(prompt: str) -> Source:
    if sys.stdin.isatty():
        raise UsageError("-: pipe a picture into the command, such as `camera-edit edit - < photo.jpg`.")
    return Source(Path("stdin"), prompt, sys.stdin.buffer.read())


def _read_list(file: Path) -> list[Source]:
    """The sources of a list; files are relative to its folder."""
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if file.suffix.lower() not in readers:
        raise UsageError(f"{file}: --list takes a file that ends in .csv or .jsonl.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"{file}: cannot be read: {problem}") from problem
    sources = [_source(row, f"{file}:{line}", file.parent) for line, row in readers[file.suffix.lower()](text, file)]
    if not sources:
        raise UsageError(f"{file}: the list has no pictures.")
    return sources


def _csv_rows(text: str, file: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    try:
        for row in reader:
            # DictReader collects surplus values under None.
            yield reader.line_num, {str(name): value for name, value in row.items()}
    except csv.Error as problem:
        raise UsageError(f"{file}: not CSV: {problem}") from problem


def _jsonl_rows(text: str, file: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as problem:
            raise UsageError(f"{file}:{number}: not JSON: {problem}") from problem
        if not isinstance(row, dict):
            raise UsageError(f"{file}:{number}: each line is an object with the fields file and prompt.")
        yield number, row


def _source(row: Mapping[str, object], where: str, folder: Path) -> Source:
    if row.keys() != _COLUMNS:
        raise UsageError(f"{where}: has {', '.join(sorted(row)) or 'nothing'}; it must have file and prompt.")
    name, prompt = row["file"], row["prompt"]
    if not isinstance(name, str) or not isinstance(prompt, str) or not name:
        raise UsageError(f"{where}: file and prompt must be texts, and file must not be empty.")
    path = folder / name
    if not path.is_file():
        raise UsageError(f"{where}: {path}: no such file.")
    return Source(path, prompt)
