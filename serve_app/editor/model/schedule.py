"""An edit's noise schedule."""

from dataclasses import dataclass

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

from serve_app.config import SchedulerSettings


@dataclass(frozen=True)
class Schedule:
    """Timesteps and noise levels of one edit.

    Attributes:
        steps: the timestep (0 to 1000) of each step.
        deltas: each Euler step's length in sigma, negative.
    """

    steps: tuple[float, ...]
    deltas: tuple[float, ...]

    @property
    def num_steps(self) -> int:
        return len(self.steps)


TABLED_STEP_COUNTS = (*range(1, 17), 20, 28, 30, 40, 50)
"""Step counts whose timesteps are in the AdaLN tables initially: with Lightning, and those usual without it."""


def tabled_timesteps(settings: SchedulerSettings) -> list[float]:
    """All timesteps of TABLED_STEP_COUNTS, for a scheduler whose shift does not depend on the size."""
    schedules = (make_schedule(settings, num_steps, 1) for num_steps in TABLED_STEP_COUNTS)
    return [timestep for schedule in schedules for timestep in schedule.steps]


def make_schedule(settings: SchedulerSettings, num_steps: int, num_tokens: int) -> Schedule:
    """The schedule that diffusers' pipeline would run for `num_tokens` output tokens.

    The shift grows linearly with the token count between the two base points of the settings; Lightning's settings
    make it constant.
    """
    if num_steps == 1:
        # With a single sigma, diffusers divides by zero when it stretches the schedule to the terminal sigma.
        settings = settings.model_copy(update={"shift_terminal": None})
    scheduler = FlowMatchEulerDiscreteScheduler(**settings.model_dump())
    slope = (settings.max_shift - settings.base_shift) / (settings.max_image_seq_len - settings.base_image_seq_len)
    shift = settings.base_shift + slope * (num_tokens - settings.base_image_seq_len)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=shift)
    return Schedule(steps=tuple(scheduler.timesteps.tolist()), deltas=tuple(scheduler.sigmas.diff().tolist()))
