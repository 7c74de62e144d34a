"""An edit's own noise schedule."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from serve_app.config import SchedulerSettings


@dataclass(frozen=True)
class Schedule:
    """Timesteps (0 to 1000) and sigmas (1 to 0) of one edit, float32 on the CPU.

    Attributes:
        timesteps: shape (num_steps,).
        sigmas: shape (num_steps + 1,), the last one 0.
    """

    timesteps: torch.Tensor
    sigmas: torch.Tensor

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    def delta(self, index: int) -> float:
        """The Euler step's length in sigma at step `index`; negative."""
        return float(self.sigmas[index + 1] - self.sigmas[index])


def make_schedule(settings: SchedulerSettings, num_steps: int, num_tokens: int) -> Schedule:
    """The schedule that diffusers' pipeline would run for `num_tokens` output tokens.

    The shift grows linearly with the token count between the two base points of the settings; Lightning's settings
    make it constant.
    """
    if num_steps == 1:
        # A single sigma cannot be stretched to a terminal one: diffusers divides by zero.
        settings = settings.model_copy(update={"shift_terminal": None})
    scheduler = FlowMatchEulerDiscreteScheduler(**settings.model_dump())
    slope = (settings.max_shift - settings.base_shift) / (settings.max_image_seq_len - settings.base_image_seq_len)
    shift = settings.base_shift + slope * (num_tokens - settings.base_image_seq_len)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=shift)
    return Schedule(timesteps=scheduler.timesteps, sigmas=scheduler.sigmas)
