"""The engine's counters."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStats:
    """Totals since the start, and current values: `preparing`, `waiting`, `running`, `paused` and
    `token_budget`.

    Attributes:
        num_steps: packed transformer calls.
        num_edit_steps: steps of single edits; above `num_steps` where steps were shared.
        num_step_tokens: picture tokens in all packed transformer calls.
        token_budget: picture tokens that a step may have now; below the configured number after an out-of-memory error.
    """

    preparing: int = 0
    waiting: int = 0
    running: int = 0
    paused: int = 0
    num_steps: int = 0
    num_edit_steps: int = 0
    num_step_tokens: int = 0
    token_budget: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
