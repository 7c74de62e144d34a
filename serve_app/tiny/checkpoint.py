"""The tiny checkpoint as a whole: built once into a cache folder named by its recipe."""

import hashlib
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

TOY_FOLDER = Path(__file__).parent / "toy"
"""The tiny weights trained on the toy world by `serve_app.tools.training`."""

PARTS = ("edit", "lightning", "angles", "cyanotype", "rewriter")
CACHE_VARIABLE = "CAMERA_EDIT_CACHE"


def build_checkpoint(folder: Path) -> None:
    """Write all parts into `folder`, which must not exist or be empty. The same recipe gives the same bytes.

    Raises:
        FileExistsError: the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: name a new folder for the tiny checkpoint.")
    # They take seconds to import: whoever only looks for weights does without them.
    import torch

    from serve_app.tiny.adapters import save_angles, save_cyanotype, save_lightning
    from serve_app.tiny.edit_model import save_edit_model
    from serve_app.tiny.rewriter import save_rewriter
    from serve_app.tiny.tokenizer import build_tokenizer

    with torch.random.fork_rng(devices=[]):
        tokenizer = build_tokenizer()
        transformer = save_edit_model(folder / "edit", tokenizer)
        save_lightning(folder / "lightning", transformer)
        save_angles(folder / "angles", transformer)
        save_cyanotype(folder / "cyanotype", transformer)
        save_rewriter(folder / "rewriter", tokenizer)


def cached_checkpoint() -> Path:
    """The folder of the tiny checkpoint, built on first use.

    A checkpoint appears under its final name by one rename, so that a half-built one is never seen; of two
    processes that build at once, the later one throws its copy away.
    """
    final = cache_root() / f"tiny-{recipe_hash()}"
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix="building-", dir=final.parent))
    try:
        build_checkpoint(building)
        building.rename(final)
    except OSError:
        if not final.is_dir():
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return final


def recipe_hash() -> str:
    """Names the recipe: this package's source and the libraries that write the files."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    for library in ("torch", "diffusers", "transformers"):
        digest.update(f"{library}={version(library)}".encode())
    return digest.hexdigest()[:16]


def cache_root() -> Path:
    configured = os.environ.get(CACHE_VARIABLE)
    return Path(configured) if configured else Path.home() / ".cache" / "qwen-camera-edit"
