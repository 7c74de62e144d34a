"""Is there a GPU, or will there be one? Asked before anything is deployed.

Serve itself waits for ever for a resource that no node has, and `serve run FILE` goes on sleeping even after a
deployment has failed. So a configuration that needs a GPU is refused where none is and none can come, and the waiting
`serve run` is ended.
"""

import logging
import os
import signal
import subprocess
import sys
from pathlib import PurePath

import psutil
import ray

from serve_app.config import AppSettings
from serve_app.errors import NoGpuError

logger = logging.getLogger("ray.serve")

_END_AFTER_S = 5.0  # by then the controller has logged why


def require_gpus(settings: AppSettings) -> None:
    """Return if the cluster has the GPUs that the settings ask for, or may get them; say what is waited for.

    Raises:
        NoGpuError: there are none and none can come. A `serve run` that waits on this node is ended, too.
    """
    needed = _needed(settings)
    present = ray.cluster_resources().get("GPU", 0.0)
    if present >= 1 or not needed:
        return
    promised = _autoscaler_gpus()
    if settings.wait_for_gpu or (settings.wait_for_gpu is None and promised > 0):
        logger.warning("%s; waiting for the autoscaler to add a node (up to %g GPUs).", _no_gpu(needed), promised)
        return
    message = (
        f"{_no_gpu(needed)}, and there is no autoscaler that could add one. To try the service on a CPU, run "
        "`serve run configs/tiny-cpu.yaml`. To wait for a GPU node all the same, set wait_for_gpu: true."
    )
    logger.error(message)
    _end_serve_run()
    raise NoGpuError(message)


def _needed(settings: AppSettings) -> list[str]:
    rewriter_needs = settings.rewriter is not None and settings.rewriter.device == "cuda"
    return ["Editor"] * (settings.editor.device == "cuda") + ["Rewriter"] * rewriter_needs


def _no_gpu(needed: list[str]) -> str:
    return f"{' and '.join(needed)} {'need' if len(needed) > 1 else 'needs'} a GPU and this cluster has none"


def _autoscaler_gpus() -> float:
    """GPUs that the autoscaler may bring, from the cluster configuration that it reports; 0 without one."""
    # Ray has no public call for it; Ray Data and Ray Train ask the same way.
    most = ray._private.state.state.get_max_resources_from_cluster_config()
    return float((most or {}).get("GPU", 0))


def _end_serve_run() -> None:
    """Terminate the `serve run` process that started this job, a little later, if it runs on this node."""
    job = ray.get_runtime_context().get_job_id()
    for entry in ray._private.state.jobs():
        if entry["JobID"] == job and entry["DriverIPAddress"] == ray.util.get_node_ip_address():
            pid = int(entry["DriverPid"])
            if _is_serve_run(pid):
                _terminate_later(pid)


def _is_serve_run(pid: int) -> bool:
    # Under KubeRay and `serve deploy`, the driver is Ray's own dashboard agent: it must live.
    try:
        arguments = psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
    names = [PurePath(argument).name for argument in arguments[:3]]
    return "serve" in names and "run" in arguments


def _terminate_later(pid: int) -> None:
    # A process of its own: this one may be gone by then.
    code = f"import os, time; time.sleep({_END_AFTER_S}); os.kill({pid}, {int(signal.SIGTERM)})"
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True, env=dict(os.environ))
