"""Schedules against known values, and against what diffusers' pipeline computes."""

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_shift

from serve_app.config import SchedulerSettings
from serve_app.editor.model.schedule import make_schedule
from serve_app.tiny.edit_model import STOCK_SCHEDULER

LIGHTNING = SchedulerSettings()
STOCK = SchedulerSettings(**STOCK_SCHEDULER)  # type: ignore[arg-type]
MEGAPIXEL_TOKENS = 4096

# Known values of the two schedulers, before the trailing 0.
KNOWN = [
    (LIGHTNING, 4, [1, 0.9, 0.75, 0.5]),
    (LIGHTNING, 8, [1, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3]),
    (STOCK, 4, [1, 0.7667, 0.4556, 0.02]),
]


@pytest.mark.parametrize(("settings", "steps", "sigmas"), KNOWN)
def test_known_sigmas(settings: SchedulerSettings, steps: int, sigmas: list[float]) -> None:
    schedule = make_schedule(settings, steps, MEGAPIXEL_TOKENS)
    assert schedule.steps == pytest.approx([1000 * sigma for sigma in sigmas], abs=0.1)
    assert schedule.deltas == pytest.approx(np.diff([*sigmas, 0.0]), abs=1e-4)
    assert schedule.num_steps == steps


def test_lightnings_shift_does_not_depend_on_the_size() -> None:
    small, large = (make_schedule(LIGHTNING, 6, tokens) for tokens in (64, 16384))
    assert small == large
    assert make_schedule(STOCK, 6, 64) != make_schedule(STOCK, 6, 16384)


@pytest.mark.parametrize("settings", [LIGHTNING, STOCK])
def test_a_single_step_goes_all_the_way(settings: SchedulerSettings) -> None:
    schedule = make_schedule(settings, 1, MEGAPIXEL_TOKENS)
    assert (schedule.steps, schedule.deltas) == ((1000.0,), (-1.0,))


@pytest.mark.parametrize("settings", [LIGHTNING, STOCK])
@pytest.mark.parametrize("tokens", [64, 256, 4096])
@pytest.mark.parametrize("steps", [2, 4, 7, 40])
def test_equals_diffusers(settings: SchedulerSettings, tokens: int, steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**settings.model_dump())
    mu = calculate_shift(
        tokens,
        settings.base_image_seq_len,
        settings.max_image_seq_len,
        settings.base_shift,
        settings.max_shift,
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    schedule = make_schedule(settings, steps, tokens)
    assert schedule.steps == pytest.approx(scheduler.timesteps.tolist())
    assert schedule.deltas == pytest.approx(scheduler.sigmas.diff().tolist())
