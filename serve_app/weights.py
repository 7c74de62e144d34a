"""Finding weights: a folder, a repository of the Hugging Face hub, or the embedded tiny checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from serve_app.config import WeightsSource
from serve_app.errors import CheckpointError
from serve_app.tiny.checkpoint import PARTS, cached_checkpoint

TINY_PREFIX = "tiny:"

MODEL_FILES = ("*.json", "*.txt", "*.jinja", "*.safetensors")
"""What a model's repository holds that we load."""


def locate(source: WeightsSource, patterns: Sequence[str] | None = None) -> Path:
    """The local folder of `source`, downloaded first where it is a repository id.

    Args:
        source: folder, repository id with revision, or `tiny:NAME`.
        patterns: file patterns to download; everything when None. Pickled weights are never fetched.

    Raises:
        CheckpointError: there is no such folder, part or repository, or the hub cannot be reached.
    """
    if source.path.startswith(TINY_PREFIX):
        return _tiny_part(source.path.removeprefix(TINY_PREFIX))
    folder = Path(source.path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or source.path.startswith((".", "~")):
        raise CheckpointError(f"The weights folder {source.path} does not exist on this node.")
    return _download(source, patterns)


def _tiny_part(name: str) -> Path:
    if name not in PARTS:
        raise CheckpointError(f"There is no tiny checkpoint {name!r}; there are {', '.join(PARTS)}.")
    return cached_checkpoint() / name


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
            f"The weights {source.path!r} (revision {source.revision}) could not be had: {problem}. "
            "Name an existing folder, or a repository id that this node can download."
        ) from problem
    return Path(found)
