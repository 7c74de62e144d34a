"""The `serve run` process behind a replica, which goes on waiting when its application can never start."""

import os
import signal
import time
from pathlib import PurePath

import psutil
import ray

_MESSAGE_S = 3.0  # for the error to reach the terminal, which Ray serves with a delay


def end_serve_run() -> None:
    """Terminate the `serve run` process that started this job, if it runs on this node. What is to be said before its
    end must have been logged already."""
    job = ray.get_runtime_context().get_job_id()
    here = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    for entry in ray._private.state.jobs():  # type: ignore[no-untyped-call]
        if entry["JobID"] == job and entry["DriverIPAddress"] == here:
            pid = int(entry["DriverPid"])
            if _is_serve_run(pid):
                time.sleep(_MESSAGE_S)
                os.kill(pid, signal.SIGTERM)


def _is_serve_run(pid: int) -> bool:
    # Under KubeRay and `serve deploy`, the driver is Ray's own dashboard agent: it must live.
    try:
        arguments = psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
    names = [PurePath(argument).name for argument in arguments[:3]]
    return "serve" in names and "run" in arguments
