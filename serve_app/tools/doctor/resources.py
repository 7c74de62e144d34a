"""Checks memory, shared memory, and the folders that the service writes to."""

import getpass
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ray._common.utils import get_default_ray_temp_dir

from serve_app.config import RANDOM_PREFIX, AppSettings, EditorSettings, SqliteStoreSettings
from serve_app.tiny.checkpoint import CACHE_VARIABLE, cache_root
from serve_app.tools.check.plan import GB
from serve_app.tools.doctor.finding import Finding
from serve_app.tools.doctor.machine import DiskSpace, Machine, nearest

SERVICE_BYTES = 4 * GB
"""Of memory, for Ray's processes and the replicas without their weights."""

UNKNOWN_BYTES = 16.6 * GB
"""Of memory, for weights on the host whose model is unknown: as Qwen-Image-Edit-2511's text encoder."""

MARGIN_BYTES = 2 * GB
"""Free disk space that a folder needs beyond what is downloaded into it."""

RAY_FULL = 0.95
"""Ray stores no objects on a disk that is fuller (RAY_local_fs_capacity_threshold)."""


@dataclass(frozen=True)
class Folder:
    """A folder that the service writes to.

    Attributes:
        needed_bytes: free disk space that it needs.
        elsewhere: how to use another folder.
    """

    name: str
    path: Path
    elsewhere: str
    needed_bytes: float = MARGIN_BYTES
    fullest: float = 1.0


def check_memory(available_bytes: int, settings: tuple[AppSettings, ...]) -> Finding:
    """The memory that is free against what one replica of each editor keeps in it."""
    needed = SERVICE_BYTES + sum(_kept_bytes(each.editor) for each in settings)
    message = f"{_gb(available_bytes)} available, at least {_gb(needed)} needed"
    if available_bytes >= needed:
        return Finding("memory", message)
    fix = "stop other programs (`ps aux --sort=-rss | head` lists the largest), or raise the container's limit"
    return Finding("memory", message, fix)


def _kept_bytes(editor: EditorSettings) -> float:
    if editor.text_encoder_device != "cpu" and not editor.adaln_tables:
        return 0
    # Imported here, as in check/file.py.
    from serve_app.tools.check.host import kept_rows

    return sum(UNKNOWN_BYTES if row.num_bytes is None else row.num_bytes for row in kept_rows(editor))


def check_shm(machine: Machine) -> Finding:
    """Whether Ray's object store fits into /dev/shm; else Ray puts it on the disk, which is far slower."""
    if machine.shm_bytes is None:
        return Finding("/dev/shm", "not used on this system")
    message = f"{_gb(machine.shm_bytes)} free, Ray's object store takes {_gb(machine.object_store_bytes)}"
    if machine.shm_bytes >= machine.object_store_bytes:
        return Finding("/dev/shm", message)
    size = f"{machine.object_store_bytes * 1.1 / 2**30:.0f}g"
    fix = f"sudo mount -o remount,size={size} /dev/shm (in a container: docker run --shm-size={size})"
    return Finding("/dev/shm", message, fix)


def folders(settings: AppSettings, hub_cache: Path, download_bytes: float | None) -> Iterator[Folder]:
    """The folders that the service with these settings writes to on this machine.

    Args:
        download_bytes: of weights that are missing; None: none is missing.
    """
    sources = [settings.editor.base.path, *(lora.source.path for lora in settings.editor.loras)]
    if settings.rewriter is not None and settings.rewriter.source is not None:
        sources.append(settings.rewriter.source.path)
    if download_bytes is not None:
        yield Folder("weights", hub_cache, "export HF_HOME=FOLDER", MARGIN_BYTES + download_bytes)
    if any(path.startswith(RANDOM_PREFIX) for path in sources):
        yield Folder("tiny weights", cache_root(), f"export {CACHE_VARIABLE}=FOLDER")
    if isinstance(settings.jobs.store, SqliteStoreSettings):
        yield Folder("jobs", Path(settings.jobs.store.path).expanduser().parent, "set jobs.store.path: FOLDER/FILE")
    yield Folder("Ray", Path(get_default_ray_temp_dir()), "export RAY_TMPDIR=FOLDER", fullest=RAY_FULL)
    if settings.editor.compile or (settings.rewriter is not None and settings.rewriter.compile):
        default = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
        inductor = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default)
        yield Folder("compiled kernels", inductor, "export TORCHINDUCTOR_CACHE_DIR=FOLDER")


def check_folder(folder: Folder, disk: DiskSpace) -> Finding:
    """Whether the folder, or the closest one above it that exists, can be written to and has the space."""
    check = f"folder for {folder.name}"
    problem = _write_problem(folder.path)
    if problem is not None:
        fix = f'sudo mkdir -p {folder.path} && sudo chown "$USER" {folder.path}, or {folder.elsewhere}'
        return Finding(check, f"{folder.path} cannot be written to: {problem}", fix)
    message = f"{folder.path}: {_gb(disk.free_bytes)} free, {_gb(folder.needed_bytes)} needed"
    if disk.free_bytes < folder.needed_bytes:
        return Finding(check, message, f"free space (`du -xh {_root(folder.path)} | sort -h`), or {folder.elsewhere}")
    used = 1 - disk.free_bytes / disk.total_bytes
    if used >= folder.fullest:
        message = f"{folder.path}: its disk is {used:.0%} full, and from {folder.fullest:.0%} on Ray stores nothing"
        return Finding(check, message, f"free space (`du -xh {_root(folder.path)} | sort -h`), or {folder.elsewhere}")
    return Finding(check, message)


def _write_problem(path: Path) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=nearest(path)):
            return None
    except OSError as problem:
        return problem.strerror or str(problem)


def _root(path: Path) -> Path:
    """The mount point of the file system that holds `path`."""
    return next(each for each in (nearest(path), *nearest(path).parents) if each.is_mount())


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / GB:.1f} GB"
