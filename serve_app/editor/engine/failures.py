"""What an exception from the model means for its edits and for the engine."""

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.editor.engine.ticket import Ticket
from serve_app.errors import EditFailed, OutOfMemory, ServiceError
from serve_app.weights.faults import Fault, fault_of


@dataclass(frozen=True)
class Failed:
    """A call of the model that failed. It holds no reference to the exception, whose frames would keep tensors alive
    that the next attempt needs the memory of.

    Attributes:
        error: for the edit's owner.
    """

    fault: Fault
    error: ServiceError


class DeviceLost(Exception):
    """The device failed during a call. CUDA errors persist for the life of the process.

    Attributes:
        suspects: the edits of which one may have caused it.
    """

    def __init__(self, call: str, suspects: Sequence[Ticket]) -> None:
        super().__init__(f"The device failed during {call}.")
        self.suspects = suspects


def service_error(problem: Exception) -> ServiceError:
    """The error that the edit's owner gets for an exception; the details are for the log."""
    if isinstance(problem, ServiceError):
        return problem
    if fault_of(problem) is Fault.MEMORY:
        return OutOfMemory(
            "The edit needs more memory than the server has. Ask for a smaller picture (width, height, size), "
            "send fewer reference pictures, or leave guidance at 1; fewer steps do not help."
        )
    return EditFailed("The edit failed inside the model; the server's log has the reason.")


def device_failed() -> EditFailed:
    """The error of an edit that may be the cause. It is not retried: a retry might lose the next replica, too."""
    return EditFailed("The device failed or got stuck while it worked on this edit; the server's log has the reason.")
