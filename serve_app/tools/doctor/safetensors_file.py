"""Checks a safetensors file by its header, and finds the checksum that it should have."""

from dataclasses import dataclass
from pathlib import Path

from serve_app.weights.files import read_header


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
    try:
        header, first = read_header(path)
        tensor_bytes = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return Contents(first + tensor_bytes, tensor_bytes)


def size_problem(path: Path) -> str | None:
    """Why a file is not complete, or None."""
    contents, actual = read_contents(path), path.stat().st_size
    if contents is None:
        return f"is damaged: its {actual} bytes have no safetensors header"
    if actual < contents.file_bytes:
        return f"is truncated: {actual} of {contents.file_bytes} bytes"
    return f"is damaged: {actual} bytes instead of {contents.file_bytes}" if actual > contents.file_bytes else None


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
