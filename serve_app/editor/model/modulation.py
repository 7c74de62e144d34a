"""A step's modulation parameters: computed each time, or looked up in AdaLN tables.

Each block shifts, scales and gates its tokens by parameters that depend on the timestep only. With a fixed shift the
few timesteps of the usual step counts are known in advance. Their rows are computed once, after LoRA fusion, and the
`img_mod` and `txt_mod` weights, a third of the transformer, leave the device. For other timesteps they are read again.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock
from torch import nn
from torch.func import functional_call

ZERO = 0.0  # the timestep of reference tokens
MAX_EXTRA_ROWS = 128  # in addition to the initial ones; at full size a row takes 4.4 MB


def is_modulation(name: str) -> bool:
    """Whether a transformer's module or parameter of this name belongs to a block's modulation."""
    return ".img_mod." in name or ".txt_mod." in name


@dataclass(frozen=True)
class BlockRows:
    """A block's parameters, shape (rows, 6 * D) each: shift, scale and gate for attention, then for the MLP."""

    image: torch.Tensor
    text: torch.Tensor


class StepRows(Protocol):
    """One step's rows: one per span, in order, and one for t = 0."""

    @property
    def embeds(self) -> torch.Tensor:
        """Timestep embeddings, shape (rows, D)."""

    def of_block(self, index: int) -> BlockRows: ...


class Modulation(Protocol):
    """Provides each step's rows."""

    def prepare(self, timesteps: Iterable[float]) -> None:
        """Compute in advance what these timesteps (0 to 1000) of an edit need."""

    def rows(self, timesteps: Sequence[float]) -> StepRows: ...


class LiveModulation:
    """Computes every step's rows from the transformer's own weights."""

    def __init__(self, transformer: QwenImageTransformer2DModel) -> None:
        self._model = transformer

    def prepare(self, timesteps: Iterable[float]) -> None:
        pass

    def rows(self, timesteps: Sequence[float]) -> StepRows:
        return _LiveRows(self._model, embed(self._model, [*timesteps, ZERO]))


@dataclass(frozen=True)
class _LiveRows:
    _model: QwenImageTransformer2DModel
    embeds: torch.Tensor

    def of_block(self, index: int) -> BlockRows:
        block = self._model.transformer_blocks[index]
        return BlockRows(block.img_mod(self.embeds), block.txt_mod(self.embeds))


class TableModulation:
    """Looks rows up in tables. Rows of other timesteps are computed from the weights on the CPU.

    Args:
        transformer: loses its modulation weights. The initial rows are computed on its current device.
        timesteps: those of the initial rows.
        device: holds the tables; the transformer will run there.
        max_extra_rows: additional rows to keep; beyond that, all additional rows are dropped.
        blocks: the transformer's. An iterator may load each block when it yields it.
        read: returns the transformer's parameter of a name, on the CPU. Without it, the weights are kept there.
    """

    def __init__(
        self,
        transformer: QwenImageTransformer2DModel,
        timesteps: Iterable[float],
        device: torch.device,
        max_extra_rows: int = MAX_EXTRA_ROWS,
        blocks: Iterable[QwenImageTransformerBlock] | None = None,
        read: Callable[[str], torch.Tensor] | None = None,
    ) -> None:
        self._model = transformer
        self._read = read
        self._max_extra_rows = max_extra_rows
        first = list(dict.fromkeys([ZERO, *timesteps]))
        self._index = {timestep: row for row, timestep in enumerate(first)}
        embeds = embed(transformer, first)
        self._embeds = embeds.to(device)
        self._tables: list[BlockRows] = []
        self._modules: list[dict[str, nn.Module]] = []
        self.num_freed = 0
        for block in transformer.transformer_blocks if blocks is None else blocks:
            self._tables.append(BlockRows(block.img_mod(embeds).to(device), block.txt_mod(embeds).to(device)))
            modules = {"img_mod": block.img_mod, "txt_mod": block.txt_mod}
            block.img_mod = block.txt_mod = None
            for module in modules.values():
                self.num_freed += sum(each.numel() for each in module.parameters())
                if read is None:
                    module.to("cpu")
                else:
                    _remove_weights(module)
            self._modules.append(modules)
        self._num_first = len(first)

    @property
    def table_bytes(self) -> int:
        return sum(table.image.nbytes + table.text.nbytes for table in self._tables)

    def prepare(self, timesteps: Iterable[float]) -> None:
        """Compute all missing rows at once, so that the weights are read once.

        Raises:
            CheckpointError: the weights are to be read again, and their files have changed.
        """
        needed = list(dict.fromkeys(timesteps))
        missing = [timestep for timestep in needed if timestep not in self._index]
        if not missing:
            return
        if len(self._index) - self._num_first + len(missing) > self._max_extra_rows:
            self._drop_extra()
            # Rows that are needed now may be among the dropped ones.
            missing = [timestep for timestep in needed if timestep not in self._index]
        embeds = embed(self._model, missing)
        seen = embeds.cpu()
        rows = [self._rows_of(index, seen) for index in range(len(self._tables))]
        for index, (image, text) in enumerate(rows):
            table = self._tables[index]
            self._tables[index] = BlockRows(torch.cat([table.image, image]), torch.cat([table.text, text]))
        self._embeds = torch.cat([self._embeds, embeds])
        self._index.update({timestep: len(self._index) + place for place, timestep in enumerate(missing)})

    def rows(self, timesteps: Sequence[float]) -> StepRows:
        self.prepare(timesteps)  # recomputes rows that were dropped meanwhile
        places = torch.tensor([self._index[timestep] for timestep in (*timesteps, ZERO)], device=self._embeds.device)
        return _TableRows(self._tables, places, self._embeds[places])

    def _rows_of(self, index: int, embeds: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A block's rows for image and text, computed on the CPU."""
        return tuple(
            functional_call(module, self._weights_of(index, name), (embeds,)).to(self._embeds.device)
            for name, module in self._modules[index].items()
        )

    def _weights_of(self, index: int, name: str) -> dict[str, torch.Tensor]:
        weights: dict[str, torch.Tensor] = dict(self._modules[index][name].named_parameters())
        if self._read is None:
            return weights
        return {key: self._read(f"transformer_blocks.{index}.{name}.{key}") for key in weights}

    def _drop_extra(self) -> None:
        first = slice(self._num_first)
        self._tables = [BlockRows(table.image[first].clone(), table.text[first].clone()) for table in self._tables]
        self._embeds = self._embeds[first].clone()
        self._index = {timestep: row for timestep, row in self._index.items() if row < self._num_first}


def _remove_weights(module: nn.Module) -> None:
    for name, _ in list(module.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, nn.Parameter(torch.empty(0), requires_grad=False))


@dataclass(frozen=True)
class _TableRows:
    _tables: list[BlockRows]
    _places: torch.Tensor
    embeds: torch.Tensor

    def of_block(self, index: int) -> BlockRows:
        table = self._tables[index]
        return BlockRows(table.image[self._places], table.text[self._places])


def embed(transformer: QwenImageTransformer2DModel, timesteps: Sequence[float]) -> torch.Tensor:
    """Timestep embeddings, shape (timesteps, D), rounded to the model's dtype where the stock pipeline rounds."""
    like = transformer.img_in.weight
    scaled = torch.tensor(timesteps, device=like.device).to(like.dtype) / 1000
    embeds: torch.Tensor = transformer.time_text_embed(scaled, like)
    return embeds
