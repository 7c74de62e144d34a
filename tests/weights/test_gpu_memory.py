"""Each replica's limit on its GPU's memory: computed from its share, and set on the loading thread before loading."""

import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import ray
import torch
from transformers import AutoProcessor

from serve_app.config import AppSettings
from serve_app.editor.deployment import Editor
from serve_app.editor.loading import load
from serve_app.errors import CheckpointError, ConfigError
from serve_app.rewriter.deployment import Rewriter
from serve_app.tools.check import check_file
from serve_app.tools.check.plan import GB
from serve_app.weights.gpu_memory import CONTEXT_BYTES, allocator_fraction, prepare_gpu
from tests.conftest import ROOT

TOTAL_BYTES = 80e9
VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
EXPANDABLE = "expandable_segments:True"
PROFILES = sorted((ROOT / "configs").glob("gpu-*.yaml"))


@dataclass
class Gpu:
    """A CUDA device that records what happens to it.

    Attributes:
        events: limits as they are set, and "load", each with the name of the thread that it happened on and torch's
            allocator settings at that time.
    """

    share: float | None = 1.0
    events: list[tuple[float | str, str, str | None]] = field(default_factory=list)

    def limit(self, fraction: float) -> None:
        self._record(fraction)

    def load(self, *args: object, **options: object) -> NoReturn:
        self._record("load")
        raise OSError("the end of this test")

    def _record(self, event: float | str) -> None:
        name = threading.current_thread().name.partition("_")[0]
        self.events.append((event, name, os.environ.get(VARIABLES[0])))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(total_memory=TOTAL_BYTES))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", gpu.limit)
    monkeypatch.setattr(load, "stream_transformer", gpu.load)
    monkeypatch.setattr(AutoProcessor, "from_pretrained", gpu.load)
    assigned = lambda: {"CPU": 1.0} if gpu.share is None else {"CPU": 1.0, "GPU": gpu.share}  # noqa: E731
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_assigned_resources=assigned))
    return gpu


def start(deployment: str, settings: AppSettings, device: str) -> None:
    """Make a replica of the deployment. It fails at the latest when it loads its weights."""
    if deployment == "engine":
        Editor(settings.editor.model_copy(update={"device": device}))
    else:
        assert settings.rewriter is not None
        Rewriter(settings.rewriter.model_copy(update={"device": device}))


DEPLOYMENTS = pytest.mark.parametrize("deployment", ["engine", "rewriter"])  # by the thread that loads


@DEPLOYMENTS
def test_a_part_of_a_gpu_is_a_limit_before_anything_is_loaded(
    deployment: str, gpu: Gpu, tiny_settings: AppSettings
) -> None:
    gpu.share = 0.75
    with pytest.raises(CheckpointError, match="the end of this test"):
        start(deployment, tiny_settings, "cuda")
    limit = 0.75 - CONTEXT_BYTES / TOTAL_BYTES
    assert gpu.events == [(limit, deployment, EXPANDABLE), ("load", deployment, EXPANDABLE)]


@DEPLOYMENTS
@pytest.mark.parametrize("share", [1.0, 2.0, None])
def test_a_whole_gpu_has_no_limit(share: float | None, deployment: str, gpu: Gpu, tiny_settings: AppSettings) -> None:
    gpu.share = share
    with pytest.raises(CheckpointError, match="the end of this test"):
        start(deployment, tiny_settings, "cuda")
    assert gpu.events == [("load", deployment, EXPANDABLE)]


@DEPLOYMENTS
def test_a_replica_on_a_cpu_touches_no_gpu(
    deployment: str, gpu: Gpu, tiny_settings: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.share = None
    monkeypatch.setattr(os, "setpriority", lambda *args: None)
    with pytest.raises(CheckpointError, match="the end of this test"):
        start(deployment, tiny_settings, "cpu")
    assert gpu.events == [("load", deployment, None)]


@DEPLOYMENTS
def test_a_missing_gpu_is_still_named(
    deployment: str, gpu: Gpu, tiny_settings: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.share = 0.5
    with pytest.raises(CheckpointError, match="torch sees no CUDA device"):
        start(deployment, tiny_settings, "cuda")
    assert gpu.events == []


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("value", ["max_split_size_mb:64", "expandable_segments:False", ""])
def test_what_the_operator_has_set_for_the_allocator_stays(
    name: str, value: str, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    prepare_gpu(1.0)
    assert {each: os.environ[each] for each in VARIABLES if each in os.environ} == {name: value}


def test_torch_reads_the_setting_although_it_is_imported_already() -> None:
    code = (
        "import torch; from serve_app.weights.gpu_memory import prepare_gpu; prepare_gpu(1.0);"
        "print(torch._C._accelerator_getAllocatorSettings())"
    )
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{EXPANDABLE}\n", "")


def test_a_share_that_cuda_itself_fills_is_refused_with_what_to_do(gpu: Gpu) -> None:
    with pytest.raises(ConfigError, match=r"0\.01 of a GPU with 80\.0 GB.*1\.5 GB.*raise ray_actor_options\.num_gpus"):
        prepare_gpu(0.01)
    assert gpu.events == []


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_replicas_that_share_a_card_stay_within_it_and_within_their_plans(path: Path) -> None:
    (plans,) = check_file(path).plans
    sharing = [plan for plan in plans if plan.share < 1]
    taken = 0.0
    for plan in sharing:
        assert plan.card is not None
        total_bytes = plan.card.memory_gb * GB
        fraction = allocator_fraction(plan.share, total_bytes)
        assert fraction * total_bytes >= plan.known_bytes - CONTEXT_BYTES
        taken += fraction + CONTEXT_BYTES / total_bytes
    assert taken <= 1
