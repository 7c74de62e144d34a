"""Finds weights: a folder, a repository of the Hugging Face hub, or one of the two embedded tiny checkpoints."""

from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from serve_app.config import RANDOM_PREFIX, TOY_PREFIX, WeightsSource
from serve_app.errors import CheckpointError
from serve_app.tiny.checkpoint import PARTS, TOY_FOLDER, cached_checkpoint

MODEL_FILES = ("*.json", "*.txt", "*.jinja", "*.safetensors")
"""The files of a model's repository that are loaded."""


def locate(source: WeightsSource, patterns: Sequence[str] | None = None) -> Path:
    """The local folder of `source`, downloaded first where it is a repository id.

    Args:
        source: folder, repository id with revision, `toy:NAME` or `tiny:NAME`.
        patterns: file patterns to download; everything when None. Pickled weights are never fetched.

    Raises:
        CheckpointError: there is no such folder, part or repository, or the hub cannot be reached.
    """
    for prefix, folder_of in ((TOY_PREFIX, lambda: TOY_FOLDER), (RANDOM_PREFIX, cached_checkpoint)):
        if source.path.startswith(prefix):
            return _part(source.path.removeprefix(prefix), folder_of)
    folder = Path(source.path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or source.path.startswith((".", "~")):
        raise CheckpointError(f"The weights folder {source.path} does not exist on this node.")
    return _download(source, patterns)


def _part(name: str, folder_of: Callable[[], Path]) -> Path:
    if name not in PARTS:
        raise CheckpointError(f"There is no tiny checkpoint {name!r}; there are {', '.join(PARTS)}.")
    return folder_of() / name


def _download(source: WeightsSource, patterns: Sequence[str] | None) -> Path:
    allow = list(patterns) if patterns is not None else None
    try:
        found = snapshot_download(
            source.path,
            revision=source.revision,
            allow_patterns=allow,
            ignore_patterns=["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"],
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as problem:
        raise CheckpointError(
            f"The weights {source.path!r} (revision {source.revision}) could not be downloaded: {problem}. "
            "Name an existing folder, or a repository id that this node can download."
        ) from problem
    return Path(found)
