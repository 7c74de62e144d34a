"""A machine without faults, and Serve files for it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from serve_app.config import TINY_FILE
from serve_app.tools.doctor.examine import examine_machine
from serve_app.tools.doctor.finding import Finding
from serve_app.tools.doctor.machine import DiskSpace, Gpu, Hub, Machine, TorchBuild
from tests.processes import free_port

GB = 10**9
H100 = Gpu("NVIDIA H100 80GB HBM3", 81_559 * 2**20, "580.95.05", 9.0)


def machine(folder: Path, **changes: Any) -> Machine:
    """A healthy machine with a GPU, whose hub does not answer; `folder` holds an empty cache."""
    healthy = Machine(
        torch=TorchBuild("2.14.1+cu130", "13.0"),
        gpus=(H100,),
        memory_bytes=64 * GB,
        object_store_bytes=19 * GB,
        shm_bytes=32 * GB,
        hub=Hub(f"http://127.0.0.1:{free_port()}", folder / "hub", is_offline=False),
        disk_of=lambda path: DiskSpace(1000 * GB, 500 * GB),
    )
    return replace(healthy, **changes)


def serve_file(
    folder: Path,
    change: Callable[[dict[str, Any]], object] = lambda args: None,
    base: Path = TINY_FILE,
    host: str = "127.0.0.1",
    port: int | None = None,
) -> Path:
    """A copy of a shipped file with another port and a job store in `folder`.

    Args:
        change: is called with the application's args.
    """
    config = yaml.safe_load(base.read_text())
    config["http_options"].update(host=host, port=free_port() if port is None else port)
    args = config["applications"][0]["args"]
    args["jobs"] = {"store": {"kind": "sqlite", "path": str(folder / "state" / "jobs.sqlite3")}}
    change(args)
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def on_gpu(file: Path) -> Path:
    """The file with its Editor on a GPU."""
    config = yaml.safe_load(file.read_text())
    app = config["applications"][0]
    app["args"]["editor"]["device"] = "cuda"
    for deployment in app["deployments"]:
        if deployment["name"] == "Editor":
            deployment["ray_actor_options"]["num_gpus"] = 1
    file.write_text(yaml.safe_dump(config))
    return file


def problems(file: Path, on: Machine, deep: bool = False) -> list[Finding]:
    return [each for each in examine_machine(file, on, deep) if not each.ok]
