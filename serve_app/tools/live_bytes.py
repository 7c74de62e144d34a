"""Counts the bytes of living tensors while a function runs on the meta device or on fake tensors."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(run: Callable[[], object]) -> int:
    """The peak of the bytes of all live tensors that `run` creates. `run` works without real tensors.

    A convolution counts one more copy of an input and of an output that are not in channels-last layout: cuDNN computes
    16-bit convolutions in that layout, and transposes others.
    """
    # Not inference_mode: it hides single operations from a dispatch mode.
    with torch.no_grad(), FusedAttention(), LiveBytes() as live:
        run()
    peak: int = live.peak
    return peak


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operations create.

    Attributes:
        peak: the most bytes alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak: int = 0
        self._live = 0
        self._storages: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self._numbers = count()

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        known = {self.number(tensor) for tensor in tensors_of((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default and _is_channels_last(args[0]):
            out = torch.empty_like(out, memory_format=torch.channels_last)  # which convolutions forget without a device
        for tensor in tensors_of(out):
            if self.number(tensor) not in known:
                self._begin(tensor)
                known.add(self.number(tensor))
        self.peak = max(self.peak, self._live + _transposed_bytes(func, args, out))
        return out

    def number(self, tensor: torch.Tensor) -> int:
        """A number of the tensor's storage, the same for all its views. An address would be used again."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = next(self._numbers), weakref.ref(storage, lambda _: self._storages.pop(key, None))
        return self._storages[key][0]

    def _begin(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self._live += storage.nbytes()
        weakref.finalize(storage, self._end, storage.nbytes())

    def _end(self, num_bytes: int) -> None:
        self._live -= num_bytes


class FusedAttention(TorchFunctionMode):
    """Lets scaled_dot_product_attention allocate its output alone, as each fused kernel does. Without a device torch
    chooses its plain form, which holds all scores."""

    def __torch_function__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self.attend(*args, **(kwargs or {}))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object) -> object:
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def tensors_of(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _transposed_bytes(func: object, args: Sequence[Any], out: object) -> int:
    if func is not torch.ops.aten.convolution.default or not isinstance(out, torch.Tensor):
        return 0
    return sum(x.nbytes for x in (args[0], out) if not _is_channels_last(x))


def _is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
