"""The checks of a machine for a Serve file, in order."""

from collections.abc import Iterator
from pathlib import Path

from serve_app.config import TINY_FILE, AppSettings, RedisStoreSettings
from serve_app.tools.check import ServeFile
from serve_app.tools.check.plan import GpuPlan
from serve_app.tools.doctor.finding import Finding
from serve_app.tools.doctor.gpu import check_driver, check_gpus, check_torch
from serve_app.tools.doctor.installed import check_packages, pinned
from serve_app.tools.doctor.machine import Machine
from serve_app.tools.doctor.resources import check_folder, check_memory, check_shm, folders
from serve_app.tools.doctor.service import check_keys, check_port, check_ray, check_redis, check_serve_file
from serve_app.tools.doctor.weights import check_weights


def examine_machine(file: Path | None, machine: Machine, deep: bool = False) -> Iterator[Finding]:
    """Yield a finding per check.

    Args:
        file: None: configs/tiny-cpu.yaml.
        deep: hash all weights, not the LoRAs alone.
    """
    finding, serve_file = check_serve_file(TINY_FILE if file is None else file)
    yield finding
    settings = () if serve_file is None else serve_file.settings
    is_gpu_needed = any(each.gpu_deployments for each in settings)
    yield check_torch(machine.torch, is_gpu_needed)
    yield check_driver(machine, is_gpu_needed)
    yield check_memory(machine.memory_bytes, settings)
    yield check_shm(machine)
    yield check_ray()
    if serve_file is not None:
        yield from _examine_service(serve_file, machine, deep)


def _examine_service(serve_file: ServeFile, machine: Machine, deep: bool) -> Iterator[Finding]:
    http = serve_file.serve.http_options
    yield check_port(http.host or "127.0.0.1", http.port)
    for settings, plans in zip(serve_file.settings, serve_file.plans, strict=True):
        yield check_keys(http.host or "127.0.0.1", settings)
        yield from _examine_application(settings, plans, machine, deep)


def _examine_application(
    settings: AppSettings, plans: tuple[GpuPlan, ...], machine: Machine, deep: bool
) -> Iterator[Finding]:
    if settings.editor.quantization != "none":
        yield check_packages(pinned("quantize"), reinstall="pip install -e '.[quantize]'")
    yield from check_gpus(machine.gpus or (), settings, plans)
    if isinstance(settings.jobs.store, RedisStoreSettings):
        yield check_redis(settings.jobs.store)
    findings, download_bytes = check_weights(settings, machine.hub, deep)
    yield from findings
    for folder in folders(settings, machine.hub.cache, download_bytes):
        yield check_folder(folder, machine.disk_of(folder.path))
