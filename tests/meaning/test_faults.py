"""Injects faults that would silently ruin pictures, one at a time: the check named with each fault must fail.

`mm_token_type_ids` is not among them: the toy weights' text encoder has one token for a picture and ignores its
content, so wrong positions around it change nothing. tests/editor/test_exactness.py injects that fault into random
weights, whose encoder reads pictures.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from serve_app.config import TINY_FILE, AppSettings, SchedulerSettings, WeightsSource
from serve_app.editor.model import adapters
from serve_app.edits import camera, service
from serve_app.edits.camera import AZIMUTH_WORDS, CameraPose
from serve_app.edits.job import Job
from serve_app.ingress.pictures.prepare import Preparer
from serve_app.ingress.runpod import answers as runpod_answers
from serve_app.tiny.edit_model import STOCK_SCHEDULER
from serve_app.weights.locate import locate
from tests.conftest import settings_in
from tests.meaning import checks
from tests.meaning.checks import CHECKS, RunJob
from tests.meaning.in_process import in_process_service

Inject = Callable[[pytest.MonkeyPatch, AppSettings, Path], AppSettings]
"""Patches the code, or returns changed settings."""


@pytest.fixture(scope="module")
def settings() -> AppSettings:
    return settings_in(TINY_FILE)


@pytest.fixture(scope="module")
def without_fault(settings: AppSettings) -> Iterator[RunJob]:
    with in_process_service(settings) as run_job:
        yield run_job


@pytest.mark.parametrize("check", CHECKS)
def test_holds_without_a_fault(without_fault: RunJob, check: Callable[[RunJob], None]) -> None:
    check(without_fault)


def mirrored_azimuths(patch: pytest.MonkeyPatch, settings: AppSettings, folder: Path) -> AppSettings:
    mirrored = {azimuth: AZIMUTH_WORDS[-azimuth % 360] for azimuth in AZIMUTH_WORDS}
    patch.setattr(camera, "AZIMUTH_WORDS", mirrored)
    return settings


def camera_words_behind(patch: pytest.MonkeyPatch, settings: AppSettings, folder: Path) -> AppSettings:
    def behind(pose: CameraPose | None, prompt: str, words: str | None) -> str:
        return prompt if pose is None else f"{prompt} {pose.tokens}".lstrip()

    patch.setattr(service, "camera_prompt", behind)
    return settings


def no_alpha(patch: pytest.MonkeyPatch, settings: AppSettings, folder: Path) -> AppSettings:
    """As if the loader ignored Lightning's alpha, which is a quarter of its rank."""
    (lightning,) = (lora for lora in settings.editor.loras if lora.name == "lightning")
    tensors = load_file(locate(lightning.source) / lightning.file)
    bare = {name: tensor for name, tensor in tensors.items() if not name.endswith(".alpha")}
    assert len(bare) < len(tensors)
    save_file(bare, folder / lightning.file)
    without_alpha = lightning.model_copy(update={"source": WeightsSource(path=str(folder))})
    loras = tuple(without_alpha if lora is lightning else lora for lora in settings.editor.loras)
    return with_editor(settings, loras=loras)


def shuffled_batch(patch: pytest.MonkeyPatch, settings: AppSettings, folder: Path) -> AppSettings:
    in_order = runpod_answers._output

    def shuffled(job: Job) -> runpod_answers.RunPodOutput:
        return in_order(replace(job, outcomes=job.outcomes[1:] + job.outcomes[:1]))

    patch.setattr(runpod_answers, "_output", shuffled)
    return settings


def swapped_references(patch: pytest.MonkeyPatch, settings: AppSettings, folder: Path) -> AppSettings:
    decode = Preparer._decode_set

    async def swapped(self: Preparer, *args: Any) -> Any:
        pictures, size = await decode(self, *args)
        return pictures[::-1], size

    patch.setattr(Preparer, "_decode_set", swapped)
    return settings


def a_neighbours_adapters(patch: pytest.MonkeyPatch, settings: AppSettings, folder: Path) -> AppSettings:
    """As if the adapters of an edit acted on the whole pack."""
    runs_of = adapters.runs_of

    def for_all(uses: Sequence[adapters.Uses], *rest: Any) -> adapters.Runs:
        everyones = tuple(dict.fromkeys(use for own in uses for use in own))
        return runs_of([everyones] * len(uses), *rest)

    patch.setattr(adapters, "runs_of", for_all)
    return settings


def stock_scheduler(patch: pytest.MonkeyPatch, settings: AppSettings, folder: Path) -> AppSettings:
    return with_editor(settings, scheduler=SchedulerSettings.model_validate(STOCK_SCHEDULER))


def with_editor(settings: AppSettings, **changes: object) -> AppSettings:
    return settings.model_copy(update={"editor": settings.editor.model_copy(update=changes)})


ATTEMPTS = 5
"""Some faults show only where edits share a step, which edits that are sent together need not do on a busy machine."""


@dataclass(frozen=True)
class Fault:
    """A fault, and the check that must detect it."""

    inject: Inject
    detected_by: Callable[[RunJob], None]


FAULTS = (
    Fault(mirrored_azimuths, checks.azimuth_90_shows_the_right_side_and_not_the_left),
    Fault(camera_words_behind, checks.camera_words_and_a_wish_both_work),
    Fault(no_alpha, checks.pictures_equal_those_of_the_training_code),
    Fault(shuffled_batch, checks.eight_different_edits_return_in_their_order),
    Fault(swapped_references, checks.style_comes_from_picture_2),
    Fault(a_neighbours_adapters, checks.a_style_is_on_the_edits_that_name_it_and_on_no_other),
    Fault(stock_scheduler, checks.pictures_equal_those_of_the_training_code),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.inject.__name__)
def test_an_injected_fault_is_detected(
    fault: Fault, settings: AppSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def check() -> None:
        for _ in range(ATTEMPTS):
            fault.detected_by(run_job)

    with in_process_service(fault.inject(monkeypatch, settings, tmp_path)) as run_job, pytest.raises(AssertionError):
        check()
