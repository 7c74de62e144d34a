"""What files of weights say of themselves: their checksum, and a safetensors file's header."""

import hashlib
import json
from pathlib import Path
from typing import Any

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library


def sha256_of(path: Path) -> str:
    """SHA-256 in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header without its metadata, and where the tensors begin, in bytes. The entries are not
    checked. The header is JSON, and its length is in front of it.

    Raises:
        OSError: the file cannot be read.
        ValueError: there is no header.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"{path} has no safetensors header")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"{path} has no safetensors header")
    header.pop("__metadata__", None)
    return header, _LENGTH_BYTES + length
