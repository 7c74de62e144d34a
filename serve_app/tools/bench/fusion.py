"""The kernels of a recorded stage: one for each operation, or fused as torch.compile fuses them.

The model of fusion. For an earlier form of the block it gave 1.731 GB at one megapixel with one reference, where torch
2.14 itself lowered that block to kernels of 1.727 GB (read from inductor's scheduler):
- Matrix products and attention stand alone; between them, elementwise operations that depend on each other form one
  kernel. It reads each input once and writes what is needed outside of it; what it computes on the way takes nothing.
- An operation that could run in an earlier kernel runs in the one that needs it, which reads fewer bytes.
- `stack` is written to memory in its own dtype, and so is a reduction's result before its rows are gathered.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from serve_app.tools.bench.counting import Access, Kind, Op
from serve_app.tools.bench.fake_card import Trace

_HALF = 2  # bytes of a 16-bit number


@dataclass(frozen=True)
class Levers:
    """Which optimizations to compute with.

    Attributes:
        compiled: fuse elementwise operations within the calls that the code compiles.
        gelu_epilogue: the matrix product applies GELU to what it writes.
        one_qkv: one matrix product for query, key and value.
        tables: modulation is looked up instead of computed.
        fp8: quantizable matrix products read 8-bit weights and activations.
    """

    compiled: bool = False
    gelu_epilogue: bool = False
    one_qkv: bool = False
    tables: bool = False
    fp8: bool = False


@dataclass(frozen=True)
class Kernel:
    """One launch: its arithmetic, and the bytes that it reads and writes.

    Attributes:
        fp8: whether it multiplies 8-bit numbers.
    """

    kind: Kind
    flops: int
    num_bytes: float
    fp8: bool = False


@lru_cache(maxsize=256)
def kernels(trace: Trace, levers: Levers) -> tuple[Kernel, ...]:
    """The kernels of a stage with the levers applied. They are the same on each card."""
    ops = list(trace.ops)
    if levers.tables:
        ops = [op for op in ops if not any(access.storage in trace.modulation for access in op.reads)]
    if levers.one_qkv:
        ops = list(_merged(ops))
    if levers.fp8:
        ops = list(_quantized(ops, trace.quantizable))
    if levers.gelu_epilogue:
        ops = list(_without_gelu(ops))
    if not levers.compiled:
        return tuple(_kernel(op, trace.quantizable, levers.fp8) for op in ops)
    outside = [op for op in ops if op.region is None]
    regions: dict[int, list[Op]] = defaultdict(list)
    for op in ops:
        if op.region is not None:
            regions[op.region].append(op)
    needed = _read_outside(ops) | trace.kept
    fused = (kernel for region in regions.values() for kernel in _fused(region, needed, levers, trace.quantizable))
    return *fused, *(_kernel(op, trace.quantizable, levers.fp8) for op in outside)


def _kernel(op: Op, quantizable: frozenset[int], fp8: bool) -> Kernel:
    is_fp8 = fp8 and op.kind == "matmul" and any(access.storage in quantizable for access in op.reads)
    return Kernel(op.kind, op.flops, op.num_bytes, is_fp8)


def _fused(ops: Sequence[Op], needed: set[int], levers: Levers, quantizable: frozenset[int]) -> Iterator[Kernel]:
    """The kernels of one compiled call."""
    members: dict[int, list[Op]] = defaultdict(list)
    for op, group in zip(ops, _groups(ops, _levels(ops)), strict=True):
        members[group].append(op)
    for group_ops in members.values():
        if group_ops[0].kind == "elementwise":
            yield Kernel("elementwise", 0, _group_bytes(group_ops, ops, needed))
        else:
            yield from (_kernel(op, quantizable, levers.fp8) for op in group_ops)


def _levels(ops: Sequence[Op]) -> list[int]:
    """For each operation how many times memory was written on the longest way to it; equal levels may fuse."""
    ready: dict[int, int] = defaultdict(int)
    reduced: dict[int, bool] = defaultdict(bool)  # whether a storage depends on a reduction of its level
    levels = []
    for op in ops:
        level = max((ready[access.storage] for access in op.reads), default=0)
        is_reduced = any(reduced[access.storage] and ready[access.storage] == level for access in op.reads)
        if op.is_gather and is_reduced:
            level, is_reduced = level + 1, False
        ends = op.kind != "elementwise" or op.name == "stack"
        for access in op.writes:
            ready[access.storage] = level + ends
            reduced[access.storage] = not ends and (is_reduced or op.is_reduction)
        levels.append(level)
    return _sunk(ops, levels)


def _sunk(ops: Sequence[Op], levels: list[int]) -> list[int]:
    """Move operations without reduction to the level of the first kernel that needs them."""
    first_use: dict[int, int] = {}
    for index in reversed(range(len(ops))):
        op = ops[index]
        uses = [first_use[access.storage] for access in op.writes if access.storage in first_use]
        if op.kind == "elementwise" and not op.is_reduction and op.name != "stack" and uses:
            levels[index] = max(levels[index], min(uses))
        for access in op.reads:
            # What a matrix product reads must be in memory before it.
            use = levels[index] if op.kind == "elementwise" else 0
            first_use[access.storage] = min(use, first_use.get(access.storage, use))
    return levels


def _groups(ops: Sequence[Op], levels: Sequence[int]) -> list[int]:
    """For each operation the number of its kernel: the first operation in it."""
    parents = list(range(len(ops)))

    def root(index: int) -> int:
        while parents[index] != index:
            index = parents[index]
        return index

    writers: dict[int, int] = {}
    for index, op in enumerate(ops):
        for access in op.reads:
            writer = writers.get(access.storage)
            if writer is None or op.kind != "elementwise" or ops[writer].kind != "elementwise":
                continue
            if levels[writer] == levels[index]:
                one, other = sorted((root(writer), root(index)))
                parents[other] = one
        writers |= {access.storage: index for access in op.writes}
    return [root(index) for index in range(len(ops))]


def _group_bytes(group: Sequence[Op], ops: Sequence[Op], needed: set[int]) -> int:
    written = {access.storage for op in group for access in op.writes}
    inside = set(map(id, group))
    read_by_others = {access.storage for op in ops if id(op) not in inside for access in op.reads} | needed
    reads = {
        (access.storage, access.offset, access.num_bytes): access
        for op in group
        for access in op.reads
        if access.storage not in written
    }
    writes = {access.storage: access for op in group for access in op.writes if access.storage in read_by_others}
    return sum(access.num_bytes for access in (*reads.values(), *writes.values()))


def _read_outside(ops: Iterable[Op]) -> set[int]:
    """Storages that are read in another compiled call than the one that writes them, or outside of all."""
    writers: dict[int, int | None] = {}
    found = set()
    for op in ops:
        found |= {access.storage for access in op.reads if writers.get(access.storage, op.region) != op.region}
        writers |= {access.storage: op.region for access in op.writes}
    return found


def _merged(ops: Iterable[Op]) -> Iterator[Op]:
    """Linear layers of equal size on the same input become one."""
    last: dict[tuple[int | None, Access, int], list[Op]] = defaultdict(list)
    order: list[list[Op]] = []
    for op in ops:
        shared = None if op.name != "addmm" else (op.region, op.reads[1], op.flops)
        if shared is None or not last[shared]:
            order.append([op])
            if shared is not None:
                last[shared] = order[-1]
        else:
            last[shared].append(op)
    for group in order:
        reads = dict.fromkeys(access for op in group for access in op.reads)
        writes = tuple(access for op in group for access in op.writes)
        yield replace(group[0], flops=sum(op.flops for op in group), reads=tuple(reads), writes=writes)


def _quantized(ops: Iterable[Op], quantizable: frozenset[int]) -> Iterator[Op]:
    """Each quantizable linear layer gets an operation in front that quantizes its input, row by row."""
    numbers = iter(range(-1, -(10**9), -1))
    for op in ops:
        if op.kind != "matmul" or not any(access.storage in quantizable for access in op.reads):
            yield op
            continue
        bias, x, *weights = op.reads
        small = Access(next(numbers), 0, x.num_bytes // _HALF, 1)
        yield Op("quantize", "elementwise", 0, (x,), (small,), op.region)
        smaller = [replace(weight, num_bytes=weight.num_bytes // _HALF, itemsize=1) for weight in weights]
        yield replace(op, reads=(bias, small, *smaller))


def _without_gelu(ops: Iterable[Op]) -> Iterator[Op]:
    """Leave the activations out; what read their results reads their inputs."""
    renamed: dict[int, int] = {}
    for op in ops:
        reads = tuple(replace(access, storage=renamed.get(access.storage, access.storage)) for access in op.reads)
        if op.name == "gelu":
            renamed[op.writes[0].storage] = reads[0].storage
            continue
        yield replace(op, reads=reads)
