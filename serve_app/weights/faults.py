"""Classifies exceptions from a model: did one call fail, is memory short, or is the device lost?"""

from enum import Enum, auto

import torch

_NO_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
_DEVICE_LOST = (
    "CUDA error",
    "CUDA driver error",
    "Triton Error [CUDA]",
    "device-side assert",
    "CUDNN_STATUS_EXECUTION_FAILED",
)


class Fault(Enum):
    """CALL: one call failed. MEMORY: out of memory, and the device still works. DEVICE: no later call to the device can
    succeed in this process."""

    CALL = auto()
    MEMORY = auto()
    DEVICE = auto()


def fault_of(problem: BaseException) -> Fault:
    """The kind of fault. Torch and Triton report most faults only in a RuntimeError's text. The text of any other
    exception is ignored, because it may quote a client."""
    if isinstance(problem, MemoryError):
        return Fault.MEMORY
    if not isinstance(problem, RuntimeError):
        return Fault.CALL
    text = str(problem)
    # Checked before DEVICE: CUDA's out-of-memory message also begins with "CUDA error".
    if isinstance(problem, torch.OutOfMemoryError) or any(words in text for words in _NO_MEMORY):
        return Fault.MEMORY
    lost = isinstance(problem, torch.AcceleratorError | torch.cuda.CudaError)
    return Fault.DEVICE if lost or any(words in text for words in _DEVICE_LOST) else Fault.CALL
