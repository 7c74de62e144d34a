"""Checks a safetensors file by its header, and by its checksum."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library


@dataclass(frozen=True)
class Contents:
    """Attributes:
    file_bytes: the size that the header promises.
    tensor_bytes: without the header.
    """

    file_bytes: int
    tensor_bytes: int


def read_contents(path: Path) -> Contents | None:
    """What the header promises; None if there is no valid header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > _MAX_HEADER_BYTES:
            return None
        header = file.read(length)
    try:
        tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        tensor_bytes = max((int(entry["data_offsets"][1]) for entry in tensors), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    return Contents(_LENGTH_BYTES + length + tensor_bytes, tensor_bytes)


def size_problem(path: Path) -> str | None:
    """Why a file is not complete, or None."""
    contents, actual = read_contents(path), path.stat().st_size
    if contents is None:
        return f"is damaged: its {actual} bytes have no safetensors header"
    if actual < contents.file_bytes:
        return f"is truncated: {actual} of {contents.file_bytes} bytes"
    return f"is damaged: {actual} bytes instead of {contents.file_bytes}" if actual > contents.file_bytes else None


def hash_file(path: Path) -> str:
    """SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded_sha256(folder: Path, file: str) -> str | None:
    """The checksum that Hugging Face's client recorded when it downloaded a file of a model's folder: in its cache as
    the name that a link points to, in other folders beside the files. None: it recorded none."""
    path = folder / file
    if path.is_symlink():
        return _as_sha256(path.readlink().name)
    metadata = folder / ".cache" / "huggingface" / "download" / f"{file}.metadata"
    lines = metadata.read_text().split() if metadata.is_file() else []
    return _as_sha256(lines[1]) if len(lines) > 1 else None


def _as_sha256(text: str) -> str | None:
    # Files outside of Git LFS have a SHA-1 instead.
    return text if len(text) == 64 and set(text) <= set("0123456789abcdef") else None
