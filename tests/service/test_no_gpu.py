"""`serve run serve_config.yaml` without a GPU: it exits with advice, unless a GPU may still be added."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import ray
import yaml

from serve_app.config import AppSettings, EditorSettings, WeightsSource
from serve_app.errors import NoGpuError
from serve_app.serving import gpus
from serve_app.serving.gpus import require_gpus
from tests.conftest import ROOT
from tests.processes import free_port, starting
from tests.service.conftest import on_port, serve_run, stop
from tests.service.kill import forget_cluster, gcs_addresses

LIMIT_S = 180


def test_it_ends_and_names_the_cpu_configuration(tmp_path: Path) -> None:
    log_file = tmp_path / "serve.log"
    file = on_port(ROOT / "serve_config.yaml", free_port(), tmp_path / "gpu.yaml")
    with starting():
        process = serve_run(file, log_file)
        try:
            exit_code = process.wait(LIMIT_S)  # raises after that
        finally:
            stop(process)
    log = log_file.read_text()
    assert exit_code != 0, log
    assert "configs/tiny-cpu.yaml" in log
    assert "Editor and Rewriter need a GPU and this cluster has none" in log


AUTOSCALER: dict[str, object] = {
    **{key: {} for key in ("auth", "docker", "file_mounts")},
    **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands")},
    **{key: [] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
    **{key: [] for key in ("head_start_ray_commands", "worker_start_ray_commands")},
    "file_mounts_sync_continuously": False,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 5.0,
    "cluster_name": "may-grow",
    "max_workers": 1,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "head_resources": {},
    },
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 1, "GPU": 4}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    },
}


@pytest.fixture
def head_with_autoscaler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a head node whose autoscaler may add a node with four GPUs, but has no reason to yet."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_FAKE_CLUSTER", "1")
    port = free_port()
    config = tmp_path / "autoscaler.yaml"
    config.write_text(yaml.safe_dump(AUTOSCALER))
    start = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=1", "--num-gpus=0"]
    options = [f"--port={port}", f"--autoscaling-config={config}", "--include-dashboard=false"]
    with (tmp_path / "head.log").open("wb") as log:
        head = subprocess.Popen([*start, *options], stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        addresses = gcs_addresses(head)
        stop(head)
        forget_cluster(addresses)


# In a process of its own: Ray ends any process whose head node stops. The autoscaler starts a moment after the
# head node answers, so a first refusal may be too early.
CHECK = """
import logging, sys, time, ray
from serve_app.config import AppSettings
from serve_app.errors import NoGpuError
from serve_app.serving.gpus import require_gpus

logging.basicConfig(level=logging.WARNING)
ray.init(address=sys.argv[1], log_to_driver=False)
settings = AppSettings.model_validate({"editor": {"base": {"path": "anything"}, "device": "cuda"}})
for _ in range(20):
    try:
        require_gpus(settings)
        sys.exit(0)
    except NoGpuError:
        time.sleep(1)
sys.exit(1)
"""


def test_it_waits_if_an_autoscaler_may_add_one(head_with_autoscaler: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", CHECK, head_with_autoscaler]
    for _ in range(10):  # until the head node answers
        check = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
        if "ConnectionError" not in check.stderr:
            break
        time.sleep(1)
    assert check.returncode == 0, check.stderr
    assert "Editor needs a GPU and this cluster has none yet: waiting for a GPU node" in check.stderr
    assert "an autoscaler runs beside the head node" in check.stderr


@dataclass(frozen=True)
class Situation:
    """A cluster and settings, as `require_gpus` sees them."""

    num_gpus: float = 0
    kuberay: bool = False
    num_coming_gpus: float = 0
    wait_for_gpu: bool | None = None
    device: Literal["cpu", "cuda"] = "cuda"


SITUATIONS = [
    (Situation(), False),
    (Situation(device="cpu"), True),
    (Situation(num_gpus=1), True),
    (Situation(kuberay=True), True),
    (Situation(num_coming_gpus=8), True),
    (Situation(wait_for_gpu=True), True),
    (Situation(kuberay=True, wait_for_gpu=False), False),
    (Situation(num_gpus=1, wait_for_gpu=False), True),
]


@pytest.mark.parametrize(("situation", "starts"), SITUATIONS)
def test_when_it_starts(situation: Situation, starts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(gpus.KUBERAY_VARIABLE, raising=False)
    if situation.kuberay:
        monkeypatch.setenv(gpus.KUBERAY_VARIABLE, "1")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": situation.num_gpus})
    monkeypatch.setattr(gpus, "_reported_gpus", lambda: situation.num_coming_gpus)
    monkeypatch.setattr(gpus, "_autoscaler_runs_here", lambda: False)
    monkeypatch.setattr(gpus, "end_serve_run", lambda: None)
    editor = EditorSettings(base=WeightsSource(path="anything"), device=situation.device)
    settings = AppSettings(editor=editor, wait_for_gpu=situation.wait_for_gpu)
    with nullcontext() if starts else pytest.raises(NoGpuError):
        require_gpus(settings)
