"""What the engine's thread does right now, how it fails, and whether it takes too long."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from serve_app.editor.engine.failures import DeviceLost, Failed, Fault, as_told, fault_of
from serve_app.editor.engine.running import E, newest
from serve_app.editor.engine.ticket import Ticket
from serve_app.errors import ServiceError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """One call of the model.

    Attributes:
        suspects: the edits that are its likeliest cause, should it never end.
        began: by the engine's clock.
    """

    name: str
    suspects: Sequence[Ticket]
    began: float


class Watchdog:
    """Stands by while one thread calls the model; any thread may ask. An idle thread is never overdue.

    Args:
        limit_s: one call may take so long.
        clock: seconds.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float]) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._stage: Stage | None = None

    def attempt(self, name: str, edits: Sequence[E], work: Callable[[], T]) -> T | Failed:
        """Call the model for these edits.

        Raises:
            DeviceLost: no further call can succeed.
        """
        stage = self._stage = Stage(name, newest(edits), self._clock())
        try:
            return work()
        except Exception as problem:
            fault = fault_of(problem)
            if fault is Fault.DEVICE:
                raise DeviceLost(name, stage.suspects) from problem
            _log(name, edits, problem)
            return Failed(fault, as_told(problem))
        finally:
            self._stage = None

    @property
    def overdue(self) -> Stage | None:
        """The call that has gone on for longer than the limit."""
        stage = self._stage  # read once: the engine's thread may leave it meanwhile
        return stage if stage is not None and self._clock() - stage.began > self._limit_s else None


def _log(name: str, edits: Sequence[E], problem: Exception) -> None:
    # Log handlers may keep what they are given for a while: for lack of memory that is text, not an exception whose
    # frames hold tensors.
    known = isinstance(problem, ServiceError) or fault_of(problem) is Fault.MEMORY
    ids = ", ".join(edit.ticket.request.request_id for edit in edits)
    logger.error("%s failed for %s: %s", name, ids, repr(problem), exc_info=None if known else problem)
