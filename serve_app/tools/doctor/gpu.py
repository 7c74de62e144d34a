"""Checks torch's build, the NVIDIA driver, and the GPUs against the memory plan of `camera-edit check`."""

from collections.abc import Iterator
from dataclasses import replace

from serve_app.config import AppSettings, CardSettings
from serve_app.tools.check.plan import GB, GpuPlan
from serve_app.tools.doctor.finding import Finding
from serve_app.tools.doctor.installed import pinned
from serve_app.tools.doctor.machine import Gpu, Machine, TorchBuild

OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
"""By CUDA's major version. https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"""

_FP8_CAPABILITY, _FA3_CAPABILITY = 8.9, 9.0
_ELSEWHERE = "run the service on a machine with an NVIDIA GPU, or without one: camera-edit run configs/tiny-cpu.yaml"


def check_torch(build: TorchBuild, is_gpu_needed: bool) -> Finding:
    kind = "CPUs only" if build.cuda is None else f"CUDA {build.cuda}"
    if build.cuda is None and is_gpu_needed:
        pins = pinned()
        wanted = " ".join(f"{name}=={pins[name]}" for name in ("torch", "torchvision") if name in pins)
        fix = f"pip uninstall -y torch torchvision && pip install {wanted} --index-url https://pypi.org/simple"
        return Finding("torch", f"{build.version} is built for {kind}, and the Serve file sets device: cuda", fix)
    return Finding("torch", f"{build.version}, built for {kind}")


def check_driver(machine: Machine, is_gpu_needed: bool) -> Finding:
    """The driver's version against the oldest one that torch's CUDA accepts."""
    if not is_gpu_needed:
        return Finding("driver", "the Serve file needs no GPU")
    cuda = int((machine.torch.cuda or str(max(OLDEST_DRIVERS))).partition(".")[0])
    oldest = OLDEST_DRIVERS.get(cuda, max(OLDEST_DRIVERS.values()))
    install = f"sudo apt-get install nvidia-driver-{oldest} && sudo reboot (Ubuntu; in a container: on its host)"
    if machine.gpus is None:
        return Finding("driver", "nvidia-smi is missing or fails, and the Serve file sets device: cuda", install)
    if not machine.gpus:
        return Finding("driver", "nvidia-smi lists no GPU, and the Serve file sets device: cuda", _ELSEWHERE)
    driver = machine.gpus[0].driver
    if int(driver.partition(".")[0]) < oldest:
        return Finding("driver", f"{driver} is too old: CUDA {cuda} needs {oldest} or newer", install)
    return Finding("driver", f"{driver}, CUDA {cuda} needs {oldest} or newer")


def check_gpus(gpus: tuple[Gpu, ...], settings: AppSettings, plans: tuple[GpuPlan, ...]) -> Iterator[Finding]:
    """The smallest GPU against the plan and the settings. Each replica uses one GPU."""
    if not plans or not gpus:
        return
    gpu = min(gpus, key=lambda each: each.memory_bytes)
    card = CardSettings(name=gpu.name, memory_gb=gpu.memory_bytes / GB)
    for plan in (replace(each, card=card) for each in plans):
        check = f"GPU memory ({plan.deployment})"
        if plan.fits is False:
            yield Finding(check, plan.complaint, f"set {', or '.join(plan.savings)}")
        else:
            yield Finding(check, f"{gpu.name}: {plan.verdict}")
    if settings.editor.quantization == "fp8" and gpu.capability < _FP8_CAPABILITY:
        message = f"{gpu.name} has compute capability {gpu.capability}, and fp8 needs {_FP8_CAPABILITY}"
        yield Finding("GPU", message, "set editor.quantization: int4")
    if settings.editor.attention == "fa3" and gpu.capability < _FA3_CAPABILITY:
        message = f"{gpu.name} has compute capability {gpu.capability}, and fa3 needs {_FA3_CAPABILITY}"
        yield Finding("GPU", message, "set editor.attention: varlen")
