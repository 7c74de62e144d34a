"""Kills processes of a running service with SIGKILL."""

import contextlib
import subprocess
from collections.abc import Collection

import psutil
from ray._common.utils import reset_ray_address
from ray._private.utils import read_ray_address


def kill_all(process: "subprocess.Popen[bytes]") -> None:
    """Kill `serve run`, or `ray start`, and all that it started."""
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    addresses = gcs_addresses(process)
    for member in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(tree, timeout=20)
    forget_cluster(addresses)


def forget_cluster(addresses: Collection[str]) -> None:
    """Remove Ray's record of its latest cluster if it names one of these dead ones: otherwise the next `serve run`
    without RAY_ADDRESS tries to reach it for minutes."""
    if read_ray_address() in addresses:
        reset_ray_address()


def gcs_addresses(process: "subprocess.Popen[bytes]") -> set[str]:
    """The addresses of the cluster that a process started, from the command lines of Ray's processes."""
    flag = "--gcs-address="
    found = set()
    for member in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            found |= {each.removeprefix(flag) for each in member.cmdline() if each.startswith(flag)}
    return found


def kill_replica(process: "subprocess.Popen[bytes]", deployment: str) -> bool:
    """Kill the process of a deployment's only replica; False if there is none at the moment."""
    name = f"ray::ServeReplica:camera-edit:{deployment}"
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if (child.cmdline() or [""])[0].startswith(name):
                child.kill()
                return True
    return False
