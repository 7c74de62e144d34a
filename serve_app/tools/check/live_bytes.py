"""How much memory a computation needs at once, found by running it on the meta device."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes that tensors made within `run` take at one moment.

    A convolution counts with one more copy of its input and its output: cuDNN computes 16-bit convolutions channels
    last, and transposes what lies otherwise.
    """
    # Not inference_mode: there, operations do not reach a dispatch mode as single steps.
    with torch.no_grad(), _LiveBytes() as live:
        run()
    peak: int = live.peak
    return peak


# torch leaves its dispatch modes untyped.
class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak: int = 0
        self._live = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        out: object = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self._live + _transposed_bytes(func, args, out))
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def drop(_: object) -> None:
            self._live -= size
            del self._storages[key]

        self._live += size
        self._storages[key] = weakref.ref(storage, drop)


def _transposed_bytes(func: object, args: Sequence[Any], out: object) -> int:
    if func is not torch.ops.aten.convolution.default or not isinstance(out, torch.Tensor):
        return 0
    return int(args[0].nbytes) + out.nbytes
