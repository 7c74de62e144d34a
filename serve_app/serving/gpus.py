"""Checks before anything is deployed that the cluster has a GPU, or may get one.

Serve waits forever for a resource that no node has, and `serve run FILE` keeps running after its application has
failed. So `require_gpus` refuses a configuration that needs a GPU where there is none and none can come, and ends the
waiting `serve run`. `camera-edit run` ends by itself.
"""

import logging
import os
import signal
import time
from pathlib import PurePath

import psutil
import ray

from serve_app.config import AppSettings
from serve_app.errors import NoGpuError

logger = logging.getLogger("ray.serve")  # this runs in Serve's build task, where only Serve's logger has handlers

KUBERAY_VARIABLE = "RAY_USAGE_STATS_KUBERAY_IN_USE"
"""Set by the KubeRay operator in every Ray container."""

_MESSAGE_S = 3.0
"""For an error to reach the terminal, which Ray serves with a delay."""


def require_gpus(settings: AppSettings) -> None:
    """Return if the cluster has a GPU or the settings need none. Where one may still come, log that and return: Serve
    then waits for it.

    Raises:
        NoGpuError: there is none and none can come. A `serve run` that waits on this node is ended, too.
    """
    needing = settings.gpu_deployments
    if not needing or ray.cluster_resources().get("GPU", 0) >= 1:
        return
    lack = f"{' and '.join(needing)} {'need' if len(needing) > 1 else 'needs'} a GPU and this cluster has none"
    reason = _reason_to_wait(settings)
    if reason is not None:
        logger.warning("%s yet: waiting for a GPU node, since %s.", lack, reason)
        return
    message = (
        f"{lack}, and there is no autoscaler that could add one. To try the service on a CPU, run "
        "`serve run configs/tiny-cpu.yaml`. To wait for a GPU node all the same, set wait_for_gpu: true."
    )
    logger.error(message)
    end_serve_run()
    raise NoGpuError(message)


def _reason_to_wait(settings: AppSettings) -> str | None:
    """Why a GPU may still come, or None."""
    if settings.wait_for_gpu is not None:
        return "wait_for_gpu says so" if settings.wait_for_gpu else None
    if KUBERAY_VARIABLE in os.environ:
        return "under KubeRay its pod may come later than the head's"
    if (promised := _reported_gpus()) > 0:
        return f"the cluster's configuration promises up to {promised:g} GPUs"
    if _autoscaler_runs_here():
        return "an autoscaler runs beside the head node"
    return None


def _reported_gpus() -> float:
    """GPUs that an autoscaler may add, where it reports its configuration. Ray Data and Ray Train read it here, too."""
    most = ray._private.state.state.get_max_resources_from_cluster_config()
    return float((most or {}).get("GPU", 0))


def _autoscaler_runs_here() -> bool:
    """Whether this node runs an autoscaler with a configuration. Ray has no call for it: without a configuration the
    same process runs, too, and reports alike. Serve builds applications on the head node, where it would run."""
    return any(
        PurePath(argument).name == "monitor.py" and any(part.startswith("--autoscaling-config=") for part in arguments)
        for arguments in _command_lines()
        for argument in arguments[:4]
    )


def _command_lines() -> list[list[str]]:
    return [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]


def end_serve_run() -> None:
    """Terminate the `serve run` process that started this job, if it runs on this node: it would wait for an
    application that can never start. Log the reason before the call."""
    job = ray.get_runtime_context().get_job_id()
    here = ray.util.get_node_ip_address()
    for entry in ray._private.state.jobs():
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


def assigned_gpu_share() -> float:
    """The part of a GPU that Ray has assigned to this replica; 1.0 where it has assigned none."""
    assigned: dict[str, float] = ray.get_runtime_context().get_assigned_resources()
    return assigned.get("GPU", 1.0)
