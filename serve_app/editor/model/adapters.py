"""LoRA adapters that are not fused: each acts on the tokens of the edits that use it.

The factors of all adapters lie below one another in a pair of tensors for each linear layer, the slab. A pack's runs
say which tokens use which rows of the slabs, as data: compiled code is the same for every combination of adapters.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol, TypeVar

import torch
from diffusers import QwenImageTransformer2DModel
from torch import nn
from torch.nn.functional import linear

from serve_app.config import LoraSettings
from serve_app.editor.model.modulation import BlockRows
from serve_app.editor.model.projections import AddAdapters
from serve_app.edits.request import MAX_LORAS, EditRequest, LoraUse
from serve_app.errors import ConfigError, ServiceUnavailable

BLOCKS = "transformer_blocks."
_MIN_ROWS = 2  # compiled code is special for tensors of one row


class Factors(NamedTuple):
    """A linear layer's update is `up.T @ down`.

    Attributes:
        down: shape (rank, in_features), alpha / rank included.
        up: shape (rank, out_features).
    """

    down: torch.Tensor
    up: torch.Tensor


@dataclass(frozen=True, eq=False)
class Adapter:
    """An audited adapter in main memory, pinned where a GPU reads it; factors by the name of the module."""

    name: str
    factors: Mapping[str, Factors]

    @property
    def rank(self) -> int:
        """The largest of its factors."""
        return max(len(factors.down) for factors in self.factors.values())


class Use(NamedTuple):
    """An adapter and the weight at which an edit uses it."""

    adapter: Adapter
    weight: float


Uses = tuple[Use, ...]


class UsesAdapters(Protocol):
    """An edit of a pack."""

    @property
    def uses(self) -> Uses: ...


Edit = TypeVar("Edit", bound=UsesAdapters)


class AdapterLibrary:
    """The adapters that edits may use, by name. Any thread may call it."""

    def __init__(self) -> None:
        self.max_rank = math.inf  # of the adapters of one edit together; the device's room sets it
        self._current: dict[str, tuple[LoraSettings, Adapter]] = {}
        self._known: dict[str, tuple[LoraSettings, Adapter]] = {}

    def replace(self, adapters: Sequence[tuple[LoraSettings, Adapter]]) -> None:
        """Set the adapters for edits from now on. Edits that were accepted before may still name the last ones.

        Raises:
            ConfigError: those of one edit may take more room than there is.
        """
        always = sum(adapter.rank for lora, adapter in adapters if lora.apply == "camera")
        named = sorted(adapter.rank for lora, adapter in adapters if lora.apply == "request")[-MAX_LORAS:]
        if always + sum(named) > self.max_rank:
            raise ConfigError(
                f"editor.adapters_bytes has room for adapters of rank {self.max_rank} altogether, and those of one "
                f"edit may take {always + sum(named)}: make it larger."
            )
        current = {lora.name: (lora, adapter) for lora, adapter in adapters}
        self._known = {**self._current, **current}  # first, so that another thread finds all that it may name
        self._current = current

    @property
    def current(self) -> list[tuple[LoraSettings, Adapter]]:
        return list(self._current.values())

    def named(self, request: EditRequest) -> tuple[LoraUse, ...]:
        """The adapters that an edit names and, with a camera pose, those for the camera, in one order: that of a
        request must not change how their sum is rounded."""
        weights = {}
        if request.camera is not None and not request.has_all_loras:
            weights = {lora.name: lora.weight for lora, _ in self.current if lora.apply == "camera"}
        weights.update({lora.name: lora.weight for lora in request.loras})
        return tuple(LoraUse(name, weight) for name, weight in sorted(weights.items()))

    def uses(self, request: EditRequest) -> Uses:
        """What an edit uses.

        Raises:
            ServiceUnavailable: it names an adapter that is not here.
        """
        return tuple(Use(self._find(use.name)[1], use.weight) for use in self.named(request) if use.weight != 0)

    def settings_of(self, loras: Iterable[LoraUse]) -> list[LoraSettings]:
        """The adapters' settings, with the weights of an edit.

        Raises:
            ServiceUnavailable: one of them is not here.
        """
        return [self._find(use.name)[0].model_copy(update={"weight": use.weight}) for use in loras]

    def _find(self, name: str) -> tuple[LoraSettings, Adapter]:
        found = self._known.get(name)
        if found is None:  # The ingress knew it: replicas get a new user_config in turn.
            raise ServiceUnavailable(f"The editor has no adapter {name} now; try again.")
        return found


class Runs(NamedTuple):
    """Which rows of a tensor use which rows of the slabs, and at which weight. On the CPU, where they are read.

    Attributes:
        places: int64, shape (runs, 4): the first row and the one after the last, of the tensor and of the slabs.
        weights: float64, shape (runs,).
    """

    places: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True)
class BlockAdapters:
    """What a pack's adapters add to a block's linear layers.

    Attributes:
        slabs: by the layer's name in the block.
        text, image: the runs of each stream's tokens.
    """

    slabs: dict[str, Factors]
    text: Runs
    image: Runs

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Their first dimensions vary."""
        return [*(tensor for slab in self.slabs.values() for tensor in slab), *self.text, *self.image]

    def add(self, runs: Runs, name: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """`out`, the output of the layer for the input `x`, with the adapters' part added in place."""
        # Outside of compiled code, calling an operation of one's own takes as long as a small product.
        add = add_low_rank if torch.compiler.is_compiling() else _add_low_rank
        add(out, x, *self.slabs[name], *runs)
        return out


def adders(adapters: BlockAdapters | None) -> tuple[AddAdapters, AddAdapters]:
    """What adds the adapters' part to the output of a layer, for the text stream and for the image stream."""
    if adapters is None:
        return _add_nothing, _add_nothing
    return partial(adapters.add, adapters.text), partial(adapters.add, adapters.image)


def _add_nothing(name: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return out


@dataclass(frozen=True)
class PackAdapters:
    """The adapters of a pack.

    Attributes:
        slabs: of each block.
        rows: the runs of the modulation's rows.
    """

    slabs: Sequence[dict[str, Factors]]
    text: Runs
    image: Runs
    rows: Runs

    def of_block(self, index: int) -> BlockAdapters:
        return BlockAdapters(self.slabs[index], self.text, self.image)

    def modulate(self, index: int, rows: BlockRows, activated: torch.Tensor) -> BlockRows:
        """A block's modulation rows with the adapters' part.

        Args:
            activated: timestep embeddings after the activation, shape (rows, D).
        """
        block = self.of_block(index)
        return BlockRows(
            block.add(self.rows, "img_mod.1", activated, rows.image),
            block.add(self.rows, "txt_mod.1", activated, rows.text),
        )


class AdapterSlabs:
    """The factors on the device, those of the least recently used adapters in main memory only. One thread owns it.

    Args:
        transformer: its blocks' linear layers have slabs, with the shapes that they have now.
        max_bytes: of the slabs.
    """

    def __init__(self, transformer: QwenImageTransformer2DModel, max_bytes: int, device: torch.device) -> None:
        self._device, self._dtype = device, transformer.dtype
        self._shapes = [
            {name: layer.weight.shape for name, layer in block.named_modules() if isinstance(layer, nn.Linear)}
            for block in transformer.transformer_blocks
        ]
        numbers = sum(sum(shape) for block in self._shapes for shape in block.values())
        self.max_rank = max_bytes // (numbers * self._dtype.itemsize)
        self._num_rows = 0
        self._slabs: list[dict[str, Factors]] = []
        self._places: dict[Adapter, range] = {}  # the least recently used one first

    def parts(self, edits: Sequence[Edit]) -> list[list[Edit]]:
        """The edits of a pack, those with the same adapters next to each other, in as few parts as the slabs need to
        hold the adapters of each."""
        ordered = sorted(edits, key=lambda edit: [(use.adapter.name, use.weight) for use in edit.uses])
        parts: list[list[Edit]] = [[]]
        here: set[Adapter] = set()
        for edit in ordered:
            own = {adapter for adapter, _ in edit.uses}
            here |= own
            if parts[-1] and sum(adapter.rank for adapter in here) > self.max_rank:
                parts.append([])
                here = own
            parts[-1].append(edit)
        return parts

    def pack(self, uses: Sequence[Uses], num_text: Sequence[int], num_image: Sequence[int]) -> PackAdapters:
        """Place the adapters on the device.

        Args:
            uses: of each span.
            num_text, num_image: each span's tokens.
        """
        places = self._placed({adapter for own in uses for adapter, _ in own})
        # A row for each span's timestep, then one for each span's references.
        rows = runs_of([*uses, *uses], [1] * (2 * len(uses)), places)
        return PackAdapters(self._slabs, runs_of(uses, num_text, places), runs_of(uses, num_image, places), rows)

    def _placed(self, needed: set[Adapter]) -> Mapping[Adapter, range]:
        for adapter in needed & self._places.keys():
            self._places[adapter] = self._places.pop(adapter)
        missing = needed - self._places.keys()
        kept = dict.fromkeys([*self._places, *missing])
        idle = [adapter for adapter in kept if adapter not in needed]
        while idle and sum(adapter.rank for adapter in kept) > self.max_rank:
            kept.pop(idle[0])
            self._places.pop(idle.pop(0))
        for adapter in missing:
            place = self._gap(adapter.rank)
            if place is None:
                self._rebuild(kept)
                break
            self._put(adapter, place)
        return self._places

    def _gap(self, rank: int) -> range | None:
        """The first free rows for an adapter, or None."""
        start = 0
        for taken in sorted(self._places.values(), key=lambda taken: taken.start):
            if taken.start - start >= rank:
                break
            start = taken.stop
        return range(start, start + rank) if start + rank <= self._num_rows else None

    def _rebuild(self, adapters: Iterable[Adapter]) -> None:
        """Slabs, larger if they must be, in which these adapters follow each other without gaps."""
        ends = list(accumulate((adapter.rank for adapter in adapters), initial=0))
        num_rows = max(self._num_rows, ends[-1], _MIN_ROWS, min(self.max_rank, 2 * self._num_rows))
        self.clear()  # freed before there are others, whose allocation may fail
        self._slabs = [{name: self._slab(num_rows, *shape) for name, shape in block.items()} for block in self._shapes]
        self._num_rows = num_rows
        for adapter, place in zip(adapters, pairwise(ends), strict=False):
            self._put(adapter, range(*place))

    def clear(self) -> None:
        """Free the slabs. The next pack with adapters makes others."""
        self._num_rows, self._slabs, self._places = 0, [], {}

    def _slab(self, num_rows: int, num_out: int, num_in: int) -> Factors:
        return Factors(
            torch.zeros(num_rows, num_in, dtype=self._dtype, device=self._device),
            torch.zeros(num_rows, num_out, dtype=self._dtype, device=self._device),
        )

    def _put(self, adapter: Adapter, place: range) -> None:
        self._places[adapter] = place
        for index, block in enumerate(self._slabs):
            for name, slab in block.items():
                factors = adapter.factors.get(f"{BLOCKS}{index}.{name}")
                for part, target in enumerate(slab):
                    rows = target[place.start : place.stop]
                    num_own = 0 if factors is None else len(factors[part])
                    if factors is not None:
                        rows[:num_own].copy_(factors[part], non_blocking=True)
                    rows[num_own:].zero_()  # what another adapter left there


def runs_of(uses: Sequence[Uses], lengths: Sequence[int], places: Mapping[Adapter, range]) -> Runs:
    """The runs of spans of so many rows each, those of one adapter and weight next to each other as one."""
    bounds = list(pairwise(accumulate(lengths, initial=0)))
    rows: list[tuple[int, int, int, int]] = []
    weights: list[float] = []
    for use in dict.fromkeys(use for own in uses for use in own):
        place = places[use.adapter]
        joined: list[tuple[int, int]] = []
        for start, stop in (bound for bound, own in zip(bounds, uses, strict=True) if use in own):
            if joined and joined[-1][1] == start:
                start = joined.pop()[0]
            joined.append((start, stop))
        rows += [(*bound, place.start, place.stop) for bound in joined]
        weights += [use.weight] * len(joined)
    rows += [(0, 0, 0, 0)] * (_MIN_ROWS - len(rows))
    weights += [0.0] * (_MIN_ROWS - len(weights))
    return Runs(torch.tensor(rows), torch.tensor(weights, dtype=torch.float64))


def _add_low_rank(
    out: torch.Tensor,
    x: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    places: torch.Tensor,
    weights: torch.Tensor,
) -> None:
    """Add `weight * x @ down.T @ up` to the rows of each run."""
    for (start, stop, first, last), weight in zip(places.tolist(), weights.tolist(), strict=True):
        if start < stop:
            num_rows, rank = stop - start, last - first
            hidden = linear(x.narrow(0, start, num_rows), down.narrow(0, first, rank))
            out.narrow(0, start, num_rows).addmm_(hidden, up.narrow(0, first, rank), alpha=weight)


add_low_rank = torch.library.custom_op("camera_edit::add_low_rank", _add_low_rank, mutates_args=("out",))
"""One operation for the compiler, which would otherwise compile for every number of runs."""


@add_low_rank.register_fake
def _(*arguments: torch.Tensor) -> None:
    """It returns nothing."""
