"""How many picture tokens may share a step, and how long steps take."""

from collections.abc import Callable

REGROWTH_PER_MIN = 0.1
"""Share of the full token budget that comes back in a minute after a cut."""


class TokenBudget:
    """Picture tokens that may share a step: all until a pack runs out of memory, then half of that pack. The budget
    grows back with time, since what else used the device's memory may have ended. One thread cuts it; any may read it.

    Args:
        full: tokens of one step, as configured.
        clock: seconds.
    """

    def __init__(self, full: int, clock: Callable[[], float]) -> None:
        self._full = full
        self._clock = clock
        self._cut = (full, clock())

    @property
    def tokens(self) -> int:
        """The budget as it is now."""
        cut_to, cut_at = self._cut
        regrown = self._full * REGROWTH_PER_MIN * (self._clock() - cut_at) / 60
        return min(self._full, cut_to + int(regrown))

    def cut(self, num_tokens: int) -> None:
        """Halve the budget, because a pack of so many tokens was too large."""
        self._cut = (max(1, min(self.tokens, num_tokens) // 2), self._clock())


class Speed:
    """A running mean of the steps' speeds, in which the last one has a weight of a tenth."""

    def __init__(self) -> None:
        self._tokens_per_s = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        """Count a step of so many tokens."""
        if seconds > 0:
            weight = 0.1 if self._tokens_per_s else 1.0
            self._tokens_per_s += weight * (num_tokens / seconds - self._tokens_per_s)

    def seconds(self, num_tokens: int) -> float:
        """How long so many tokens take; 0 before the first step."""
        return num_tokens / self._tokens_per_s if self._tokens_per_s else 0.0
