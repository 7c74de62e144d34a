"""Reads what the checks need to know about this machine."""

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from huggingface_hub import constants
from ray._common.utils import get_system_memory
from ray._private.utils import estimate_available_memory, get_shared_memory_bytes, resolve_object_store_memory

_NVIDIA_SMI_S = 10.0
_QUERY = "--query-gpu=name,memory.total,driver_version,compute_cap"


@dataclass(frozen=True)
class TorchBuild:
    """Attributes:
    cuda: the CUDA version that it was built for, as 13.0; None: it runs on CPUs only.
    """

    version: str
    cuda: str | None


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_bytes: float
    driver: str
    capability: float


@dataclass(frozen=True)
class Hub:
    """Where Hugging Face's client downloads from and to."""

    url: str
    cache: Path
    is_offline: bool


@dataclass(frozen=True)
class DiskSpace:
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Machine:
    """This machine, or one that a test describes.

    Attributes:
        gpus: None where there is no NVIDIA driver.
        memory_bytes: available now, within the container's limit.
        object_store_bytes: what Ray takes of /dev/shm by default: 30 % of the available memory.
        shm_bytes: free in /dev/shm; None where there is none, as on macOS.
    """

    torch: TorchBuild
    gpus: tuple[Gpu, ...] | None
    memory_bytes: int
    object_store_bytes: int
    shm_bytes: int | None
    hub: Hub
    disk_of: Callable[[Path], DiskSpace]


def read_machine() -> Machine:
    return Machine(
        torch=_torch_build(),
        gpus=read_gpus(),
        memory_bytes=min(get_system_memory(), psutil.virtual_memory().available),
        object_store_bytes=resolve_object_store_memory(estimate_available_memory()),
        shm_bytes=get_shared_memory_bytes() if Path("/dev/shm").is_dir() else None,
        hub=Hub(constants.ENDPOINT, Path(constants.HF_HUB_CACHE), constants.HF_HUB_OFFLINE),
        disk_of=disk_of,
    )


def _torch_build() -> TorchBuild:
    """Executes torch/version.py alone: importing torch takes seconds."""
    package = importlib.util.find_spec("torch")
    assert package is not None and package.origin is not None  # noqa: PT018  # the packages were checked
    spec = importlib.util.spec_from_file_location("torch_version", Path(package.origin).with_name("version.py"))
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return TorchBuild(module.__version__, module.cuda)


def read_gpus() -> tuple[Gpu, ...] | None:
    """The GPUs that nvidia-smi lists; None where it is not installed or does not answer."""
    try:
        run = subprocess.run(
            ["nvidia-smi", _QUERY, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return tuple(_gpu(line) for line in run.stdout.splitlines() if line.strip())


def _gpu(line: str) -> Gpu:
    name, mebibytes, driver, capability = (part.strip() for part in line.split(","))
    return Gpu(name, float(mebibytes) * 2**20, driver, float(capability))


def disk_of(path: Path) -> DiskSpace:
    """Of the file system that holds `path`, or will hold it."""
    usage = shutil.disk_usage(nearest(path))
    return DiskSpace(usage.total, usage.free)


def nearest(path: Path) -> Path:
    """`path`, or the closest folder above it that exists."""
    return next(each for each in (path, *path.parents) if each.exists())
