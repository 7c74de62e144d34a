"""What an exception out of the model means: for the edit, for the memory, for the whole process."""

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
    """EDIT: of one edit alone. MEMORY: there was too little, and the device works on. DEVICE: nothing that this process
    asks of the device will work again."""

    EDIT = auto()
    MEMORY = auto()
    DEVICE = auto()


@dataclass(frozen=True)
class Failed:
    """A call of the model that failed. The exception itself is gone: its frames would hold on to the tensors that the
    next attempt needs the room of."""

    fault: Fault
    told: ServiceError


class DeviceLost(Exception):
    """The device failed under a call. CUDA's errors stay for the life of the process.

    Attributes:
        suspects: the edits of which one may have caused it.
    """

    def __init__(self, call: str, suspects: Sequence[Ticket]) -> None:
        super().__init__(f"The device failed during {call}.")
        self.suspects = suspects


def fault_of(problem: BaseException) -> Fault:
    """The kind of fault. Torch and Triton tell most of them in a RuntimeError's text alone; no other text is read, for
    it may be a client's."""
    if isinstance(problem, MemoryError):
        return Fault.MEMORY
    if not isinstance(problem, RuntimeError):
        return Fault.EDIT
    text = str(problem)
    # First, for CUDA's own words for it begin with "CUDA error", too.
    if isinstance(problem, torch.OutOfMemoryError) or any(words in text for words in _NO_MEMORY):
        return Fault.MEMORY
    lost = isinstance(problem, torch.AcceleratorError | torch.cuda.CudaError)
    return Fault.DEVICE if lost or any(words in text for words in _DEVICE_LOST) else Fault.EDIT


def as_told(problem: Exception) -> ServiceError:
    """What the edit's owner hears of an exception; it is for the log to have the rest."""
    if isinstance(problem, ServiceError):
        return problem
    if fault_of(problem) is Fault.MEMORY:
        return OutOfMemory(
            "The edit needs more memory than the server has. Ask for a smaller picture (width, height, size), "
            "send fewer reference pictures, or leave guidance at 1; fewer steps do not help."
        )
    return EditFailed("The edit failed inside the model; the server's log has the reason.")


def device_failed() -> EditFailed:
    """For an edit that may be the cause: whoever ran it again might lose the next replica as well."""
    return EditFailed("The device failed or got stuck while it worked on this edit; the server's log has the reason.")
