"""The weights in a model's folder: one safetensors file, or several with an index.

The files are mapped into memory. A tensor's pages are read when it is copied, and the system may drop them afterwards,
so that a model larger than the host's memory can be loaded.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from serve_app.errors import CheckpointError
from serve_app.weights.files import read_header

_NAME = "diffusion_pytorch_model.safetensors"
_MAX_LISTED = 5


class Shards:
    """The tensors in a folder, by their names.

    Raises:
        OSError, ValueError, SafetensorError: a file is missing, or not what its name says.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}  # safetensors leaves its files untyped.
        self._places: dict[str, _Place] = {}
        self._versions = {folder / name: _version(folder / name) for name in _file_names(folder)}
        for path in self._versions:
            file: Any = safe_open(path, framework="pt")
            self._files.update(dict.fromkeys(file.keys(), file))
            self._places.update(_places(path))

    def require(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Compare names and shapes with those of the model, whose tensors may be on the meta device.

        Raises:
            CheckpointError: lists names that only one side has, and shapes that differ.
        """
        problems = [f"{name} is missing" for name in sorted(tensors.keys() - self._files.keys())]
        problems += [f"{name} is not part of the model" for name in sorted(self._files.keys() - tensors.keys())]
        for name in sorted(tensors.keys() & self._files.keys()):
            found, needed = list(self._files[name].get_slice(name).get_shape()), list(tensors[name].shape)
            if found != needed:
                problems.append(f"{name} has the shape {found}, the model {needed}")
        if problems:
            more = f", and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
            raise CheckpointError(
                f"The weights in {self._folder} do not fit its config.json: {'; '.join(problems[:_MAX_LISTED])}{more}."
            )

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor as a view of its mapped file."""
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor

    def require_unchanged(self) -> None:
        """Raise a CheckpointError if a file was changed, replaced or removed since it was opened."""
        for path, version in self._versions.items():
            if not path.is_file() or _version(path) != version:
                raise CheckpointError(f"{path} changed after the model was loaded from it. Restart the editor.")

    def read_ahead(self, names: Iterable[str]) -> None:
        """Have the system read these tensors' pages in the background. Page by page, a mapped file is read slowly."""
        for name in names:
            place = self._places[name]
            with place.path.open("rb") as file:
                os.posix_fadvise(file.fileno(), place.start, place.num_bytes, os.POSIX_FADV_WILLNEED)


def _version(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes are."""

    path: Path
    start: int
    num_bytes: int


def _places(path: Path) -> dict[str, _Place]:
    header, first = read_header(path)
    offsets = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: _Place(path, first + start, end - start) for name, (start, end) in offsets.items()}


def _file_names(folder: Path) -> list[str]:
    index = folder / f"{_NAME}.index.json"
    if not index.is_file():
        return [_NAME]
    return sorted(set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()))
