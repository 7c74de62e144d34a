"""The record of an output folder: which file holds which picture, so that the same command continues after any end."""

import fcntl
import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from serve_app.errors import UsageError
from serve_app.weights.files import sha256_of

RECORD_NAME = ".camera-edit.jsonl"
_PART = ".camera-edit-part"


@contextmanager
def open_record(folder: Path) -> Iterator["Record"]:
    """The record of a folder, which is made if it does not exist. One process at a time has it open.

    Raises:
        UsageError: another process writes to this folder.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / RECORD_NAME).open("a+b") as lines:
        try:
            fcntl.flock(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"{folder}: another camera-edit writes to this folder. Wait, or choose another --out."
            raise UsageError(message) from None
        for left in folder.glob(f".*{_PART}"):
            left.unlink()
        yield Record(lines)


class Record:
    """Lines of JSON, each of which is on the disk before what it says is true: a picture's is written before the
    picture gets its name."""

    def __init__(self, lines: BinaryIO) -> None:
        self._lines = lines
        self._made: dict[str, tuple[str, str]] = {}
        self._num_made: Counter[str] = Counter()
        self._num_ended: Counter[str] = Counter()
        self._folder_id: str | None = None
        lines.seek(0)
        text = lines.read()
        for line in text.splitlines():
            self._read(line)
        if text and not text.endswith(b"\n"):  # the process was killed while it wrote the last line
            lines.write(b"\n")

    def _read(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            if "file" in entry:
                self._made[str(entry["file"])] = (str(entry["key"]), str(entry["sha256"]))
                self._num_made[str(entry["key"])] += 1
            elif "folder" in entry:
                self._folder_id = str(entry["folder"])
            else:
                self._num_ended[str(entry["key"])] += 1
        except (ValueError, TypeError, KeyError):
            return  # A line that says nothing costs at most one repeated request.

    def holds(self, file: Path, key: str) -> bool:
        """Whether the file is there, unchanged, and was made with this key."""
        recorded = self._made.get(file.name)
        return recorded is not None and recorded[0] == key and file.is_file() and recorded[1] == sha256_of(file)

    def key_to_send(self, key: str, *, is_random: bool = False) -> str:
        """The Idempotency-Key for the next request: a job that ended without a picture would only be found again.

        Args:
            is_random: the seed is. Then another folder, or the same one once it has this picture, gets another picture.

        Raises:
            OSError: the record cannot be written.
        """
        num_ended = self._num_ended[key]
        if is_random:
            if self._folder_id is None:
                self._folder_id = uuid.uuid4().hex
                self._append({"folder": self._folder_id})
            key = f"{key}-{self._folder_id}-{self._num_made[key]}"
        return f"{key}-{num_ended}" if num_ended else key

    def add_failure(self, key: str) -> None:
        """Note that the job of this key has ended without a picture.

        Raises:
            OSError: the record cannot be written.
        """
        self._append({"key": key})
        self._num_ended[key] += 1

    def write(self, file: Path, key: str, data: bytes) -> None:
        """Write a picture: at any moment, `file` is absent, what it was before, or whole.

        Raises:
            OSError: it cannot be written.
        """
        part = file.with_name(f".{file.name}{_PART}")
        with part.open("wb") as output:
            output.write(data)
            _sync(output)
        entry = (key, hashlib.sha256(data).hexdigest())
        self._append({"file": file.name, "key": key, "sha256": entry[1]})
        part.replace(file)
        self._made[file.name] = entry
        self._num_made[key] += 1

    def _append(self, entry: dict[str, str]) -> None:
        self._lines.write(json.dumps(entry).encode() + b"\n")
        _sync(self._lines)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
