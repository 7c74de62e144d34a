"""Positions and rotary angles of a pack's tokens, computed once per combination of shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from diffusers import QwenImageTransformer2DModel

Grid = tuple[int, int]
"""A picture's size in tokens: rows, columns."""

_MAX_LAYOUTS = 16  # the angles of one edit at a megapixel take 9 MB


@dataclass(frozen=True)
class SpanShape:
    """All that a span's layout depends on: its pictures' sizes and its prompt's length."""

    target: Grid
    references: tuple[Grid, ...]
    num_text: int

    @property
    def num_target(self) -> int:
        return self.target[0] * self.target[1]

    @property
    def num_image(self) -> int:
        return self.num_target + sum(rows * columns for rows, columns in self.references)

    @property
    def num_tokens(self) -> int:
        return self.num_text + self.num_image


@dataclass(frozen=True)
class Layout:
    """A pack's index tensors, on the model's device.

    The model has two streams: the text of all spans and the pictures of all spans. Attention needs joint order: each
    span's text followed by its pictures.

    Attributes:
        num_tokens: of all spans.
        image_rows, text_rows: each token's modulation row; row i is span i's timestep, the next row is t = 0. With
            `own_zeros`, each span has a row of its own for that.
        targets: positions of the output pictures' tokens in the image stream; `target_rows` are their rows.
        joint_order: for each row in joint order, its position in text stream + image stream + padding; None for a
            single span, whose streams are in joint order.
        stream_order: the inverse permutation of the tokens, for attention's output.
        boundaries: the start of each span in joint order, and the end: int32, shape (spans + 1,).
        lengths: tokens of each span.
        longest: an upper bound of the lengths.
        padding: rows of zeros, shape (rows, heads, head_dim), which no span covers; None where attention needs none.
        image_angles, text_angles: cosine and sine of each number of a head, float32, shape (tokens, head_dim) each. The
            sine of the first number of a pair is negative.
    """

    num_tokens: int
    image_rows: torch.Tensor
    text_rows: torch.Tensor
    targets: torch.Tensor
    target_rows: torch.Tensor
    joint_order: torch.Tensor | None
    stream_order: torch.Tensor | None
    boundaries: torch.Tensor
    lengths: tuple[int, ...]
    longest: int
    padding: torch.Tensor | None
    image_angles: tuple[torch.Tensor, torch.Tensor]
    text_angles: tuple[torch.Tensor, torch.Tensor]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What a block reads outside of attention; the first dimension of each varies from pack to pack."""
        padding = [] if self.padding is None else [self.padding]
        return [self.image_rows, self.text_rows, *self.image_angles, *self.text_angles, *padding]


class Layouts:
    """Computes and caches layouts for one transformer.

    Args:
        bucket: round the rows of query, key and value, and the longest span, up to a multiple of this.
    """

    def __init__(self, transformer: QwenImageTransformer2DModel, bucket: int = 1) -> None:
        self._model = transformer
        self._bucket = bucket
        self.of = lru_cache(_MAX_LAYOUTS)(self._make)

    def _make(self, shapes: tuple[SpanShape, ...], own_zeros: bool = False) -> Layout:
        device = self._model.device
        texts, images = [shape.num_text for shape in shapes], [shape.num_image for shape in shapes]
        image_rows = self._image_rows(shapes, own_zeros)
        is_target = _repeat([1, 0] * len(shapes), _target_lengths(shapes)).bool()
        joint_order, stream_order = None, None
        num_padding = self._num_padding(sum(texts) + sum(images))
        if len(shapes) > 1:
            tokens = _interleave(texts, images)
            stream_order = tokens.argsort().to(device)
            joint_order = torch.cat([tokens, torch.arange(num_padding) + len(tokens)]).to(device)
        targets = is_target.nonzero().squeeze(1)
        image_angles, text_angles = self._angles(shapes)
        lengths = tuple(shape.num_tokens for shape in shapes)
        return Layout(
            num_tokens=sum(lengths),
            image_rows=image_rows.to(device),
            text_rows=_repeat(range(len(shapes)), texts).to(device),
            targets=targets.to(device),
            target_rows=image_rows[targets].to(device),
            joint_order=joint_order,
            stream_order=stream_order,
            boundaries=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device),
            lengths=lengths,
            longest=_round_up(max(lengths), self._bucket),
            padding=self._padding(num_padding) if num_padding else None,
            image_angles=image_angles,
            text_angles=text_angles,
        )

    def _num_padding(self, num_tokens: int) -> int:
        """Rows after the last span. With buckets at least two, since compiled code is special for one or none."""
        return 0 if self._bucket == 1 else _round_up(num_tokens + 2, self._bucket) - num_tokens

    def _padding(self, num_rows: int) -> torch.Tensor:
        config = self._model.config
        shape = (num_rows, config.num_attention_heads, config.attention_head_dim)
        # Zeros: what a kernel reads beyond a span, and masks, must not be infinite.
        return torch.zeros(shape, dtype=self._model.dtype, device=self._model.device)

    def _image_rows(self, shapes: Sequence[SpanShape], own_zeros: bool) -> torch.Tensor:
        rows: list[int] = []
        for row in range(len(shapes)):
            zero = len(shapes) + (row if own_zeros else 0)
            rows += [row, zero if self._model.zero_cond_t else row]
        return _repeat(rows, _target_lengths(shapes))

    def _angles(
        self, shapes: Sequence[SpanShape]
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """The stock model's rotary frequencies of each span, concatenated."""
        pairs = [
            self._model.pos_embed(
                [[(1, *shape.target), *((1, *grid) for grid in shape.references)]],
                max_txt_seq_len=shape.num_text,
                device=self._model.device,
            )
            for shape in shapes
        ]
        image, text = (torch.cat(stream) for stream in zip(*pairs, strict=True))
        return _per_number(image), _per_number(text)


def _per_number(angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines for each number of a head, from complex numbers for each pair."""
    cosine, sine = angles.real, angles.imag
    return torch.stack([cosine, cosine], dim=-1).flatten(1), torch.stack([-sine, sine], dim=-1).flatten(1)


def _target_lengths(shapes: Sequence[SpanShape]) -> list[int]:
    """For each span the number of output tokens, then that of reference tokens."""
    return [length for shape in shapes for length in (shape.num_target, shape.num_image - shape.num_target)]


def _repeat(values: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor(values).repeat_interleave(torch.tensor(lengths))


def _interleave(texts: Sequence[int], images: Sequence[int]) -> torch.Tensor:
    num_text = sum(texts)
    text_places = pairwise(accumulate(texts, initial=0))
    image_places = pairwise(accumulate(images, initial=num_text))
    parts = [torch.arange(*place) for pair in zip(text_places, image_places, strict=True) for place in pair]
    return torch.cat(parts)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
