"""Records a stage's operations without a GPU: their arithmetic, and the memory that each reads and writes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch.utils.flop_counter import flop_registry

from serve_app.tools.live_bytes import FusedAttention, LiveBytes, tensors_of

Kind = Literal["matmul", "attention", "elementwise"]
T = TypeVar("T")

_GATHERS = {"index", "index_select", "embedding", "gather"}
_OVERWRITES = {"copy_", "fill_", "zero_", "index_copy_", "index_put_", "scatter_"}
_REDUCTIONS = {"mean", "sum", "amax", "var_mean", "native_layer_norm", "linalg_vector_norm", "_softmax"}
_NO_KERNEL = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "lift_fresh", "device"}


@dataclass(frozen=True)
class Access:
    """Bytes of a storage that an operation reads or writes; those of a broadcast tensor count once.

    Attributes:
        storage: the storage's number.
        offset: where the tensor starts in its storage, in elements.
    """

    storage: int
    offset: int
    num_bytes: int
    itemsize: int


@dataclass(frozen=True)
class Op:
    """One operation, which eager execution runs as one kernel. Views are none.

    Attributes:
        region: number of the compiled call that it is part of; None outside of those.
    """

    name: str
    kind: Kind
    flops: int
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    region: int | None = None

    @property
    def num_bytes(self) -> int:
        return sum(access.num_bytes for access in (*self.reads, *self.writes))

    @property
    def is_gather(self) -> bool:
        return self.name in _GATHERS

    @property
    def is_reduction(self) -> bool:
        return self.name in _REDUCTIONS


class Recorder(LiveBytes):
    """A dispatch mode that records all operations on tensors of the device.

    Attributes:
        ops: in order.
        kept: storages that compiled calls return.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.kept: set[int] = set()
        self._region: int | None = None
        self._num_regions = 0
        self._attention = _RecordedAttention(self)

    def __enter__(self) -> "Recorder":
        self._attention.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._attention.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        inputs, outputs = tensors_of((args, kwargs)), tensors_of(out)
        name = func._schema.name.split("::")[1]
        on_device = any(tensor.device.type != "cpu" for tensor in (*inputs, *outputs))
        if on_device and name not in _NO_KERNEL and (func._schema.is_mutable or not self._is_view(inputs, outputs)):
            flops = flop_registry.get(func.overloadpacket)
            num_flops = 0 if flops is None else flops(*args, **(kwargs or {}), out_val=out)
            self._record(name, "elementwise" if flops is None else "matmul", num_flops, inputs, outputs)
        return out

    def attention(self, flops: int, inputs: list[torch.Tensor], out: torch.Tensor) -> None:
        """Record a call of fused attention."""
        self._record("attention", "attention", flops, inputs, [out])

    def compiled(self, function: Callable[..., T], **_: object) -> Callable[..., T]:
        """In place of torch.compile: the operations of each call form a region."""

        def call(*args: object, **named: object) -> T:
            self._region, self._num_regions = self._num_regions, self._num_regions + 1
            out = function(*args, **named)
            self._region = None
            self.kept |= {self.number(tensor) for tensor in tensors_of(out)}
            return out

        return call

    def _is_view(self, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> bool:
        known = {self.number(tensor) for tensor in inputs}
        return all(self.number(tensor) in known for tensor in outputs)

    def _record(
        self, name: str, kind: Kind, flops: int, inputs: list[torch.Tensor], outputs: list[torch.Tensor]
    ) -> None:
        reads, writes = [self._access(tensor) for tensor in inputs], [self._access(tensor) for tensor in outputs]
        if name in _OVERWRITES:
            target, *sources = reads
            most = max((source.num_bytes for source in sources), default=target.num_bytes)
            reads, writes = sources, [_limited(target, most)]
        elif name in _GATHERS:
            reads[0] = _limited(reads[0], writes[0].num_bytes)
        self.ops.append(Op(name, kind, flops, tuple(reads), tuple(writes), self._region))

    def _access(self, tensor: torch.Tensor) -> Access:
        num_items = 1
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            num_items *= size if stride else min(size, 1)
        return Access(self.number(tensor), int(tensor.storage_offset()), num_items * tensor.itemsize, tensor.itemsize)


def _limited(access: Access, num_bytes: int) -> Access:
    return Access(access.storage, access.offset, min(access.num_bytes, num_bytes), access.itemsize)


class _RecordedAttention(FusedAttention):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: object, **named: object
    ) -> object:
        out = super().attend(query, key, value, *rest, **named)
        assert isinstance(out, torch.Tensor)
        flops = 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        self._recorder.attention(flops, tensors_of((query, key, value, rest, named)), out)
        return out
