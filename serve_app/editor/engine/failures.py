"""Classifies exceptions from the model: does the edit fail, is memory short, or is the device lost?"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

import torch

from serve_app.editor.engine.ticket import Ticket
from serve_app.errors import EditFailed, OutOfMemory, ServiceError

_NO_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
_DEVICE_LOST = (
    "CUDA error",
    "CUDA driver error",
    "Triton Error [CUDA]",
    "device-side assert",
    "CUDNN_STATUS_EXECUTION_FAILED",
)


class Fault(Enum):
    """EDIT: one edit failed. MEMORY: out of memory, and the device still works. DEVICE: no later call to the device can
    succeed in this process."""

    EDIT = auto()
    MEMORY = auto()
    DEVICE = auto()


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


def fault_of(problem: BaseException) -> Fault:
    """The kind of fault. Torch and Triton report most faults only in a RuntimeError's text. The text of any other
    exception is ignored, because it may quote a client."""
    if isinstance(problem, MemoryError):
        return Fault.MEMORY
    if not isinstance(problem, RuntimeError):
        return Fault.EDIT
    text = str(problem)
    # Checked before DEVICE: CUDA's out-of-memory message also begins with "CUDA error".
    if isinstance(problem, torch.OutOfMemoryError) or any(words in text for words in _NO_MEMORY):
        return Fault.MEMORY
    lost = isinstance(problem, torch.AcceleratorError | torch.cuda.CudaError)
    return Fault.DEVICE if lost or any(words in text for words in _DEVICE_LOST) else Fault.EDIT


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
