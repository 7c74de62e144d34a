"""Runs the engine's calls of the model: classifies their failures and notices a call that takes too long."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from serve_app.editor.engine.edit import Edit
from serve_app.editor.engine.failures import DeviceLost, Failed, service_error
from serve_app.editor.engine.ticket import Ticket
from serve_app.errors import ServiceError
from serve_app.weights.faults import Fault, fault_of

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """One call of the model.

    Attributes:
        suspects: the edits that are the likeliest cause if the call never ends.
        began: by the engine's clock.
    """

    name: str
    suspects: Sequence[Ticket]
    began: float


class Watchdog:
    """One thread calls the model through it; any thread may read `overdue`.

    Args:
        limit_s: the longest that one call may take.
        clock: seconds.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float]) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._stage: Stage | None = None

    def attempt(self, name: str, edits: Sequence[Edit], work: Callable[[], T]) -> T | Failed:
        """Call the model for these edits.

        Raises:
            DeviceLost: no further call can succeed.
        """
        stage = self._stage = Stage(name, _newest(edits), self._clock())
        try:
            return work()
        except Exception as problem:
            fault = fault_of(problem)
            if fault is Fault.DEVICE:
                raise DeviceLost(name, stage.suspects) from problem
            _log(name, edits, problem)
            return Failed(fault, service_error(problem))
        finally:
            self._stage = None

    @property
    def overdue(self) -> Stage | None:
        """The call that has taken longer than the limit; None while no call runs."""
        stage = self._stage  # read once: the engine thread may set it to None meanwhile
        return stage if stage is not None and self._clock() - stage.began > self._limit_s else None


def _newest(edits: Sequence[Edit]) -> list[Ticket]:
    """The edits with the fewest steps done. The device has run the others' kernels before, so if a call breaks it, the
    newest edits are the suspects."""
    fewest = min(edit.num_done for edit in edits)
    return [edit.ticket for edit in edits if edit.num_done == fewest]


def _log(name: str, edits: Sequence[Edit], problem: Exception) -> None:
    # Log handlers may keep records for a while. After an out-of-memory error they get text only: the exception's
    # frames hold tensors.
    known = isinstance(problem, ServiceError) or fault_of(problem) is Fault.MEMORY
    ids = ", ".join(edit.ticket.request.request_id for edit in edits)
    logger.error("%s failed for %s: %s", name, ids, repr(problem), exc_info=None if known else problem)
