"""kill -9, as the chaos of a cluster does it."""

import contextlib
import subprocess

import psutil


def kill_all(process: "subprocess.Popen[bytes]") -> None:
    """Kill `serve run` and all that it started."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(family, timeout=20)


def kill_replica(process: "subprocess.Popen[bytes]", deployment: str) -> bool:
    """Kill the process of a deployment's only replica; False where there is none at the moment."""
    name = f"ray::ServeReplica:camera-edit:{deployment}"
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if (child.cmdline() or [""])[0].startswith(name):
                child.kill()
                return True
    return False
