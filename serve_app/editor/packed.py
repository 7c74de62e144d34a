"""One transformer call for many edits: all their tokens in one sequence, no padding, no mask.

Everything in the MMDiT but attention works token by token, so linear layers, norms and MLPs run once over the whole
pack. Modulation takes each token's own row: its edit's timestep, or t = 0 for reference tokens where the checkpoint
has `zero_cond_t`. Attention runs span by span over a span's own text and picture tokens. The arithmetic is that of
diffusers' QwenImageTransformer2DModel, on its own modules.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import QwenImageTransformer2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import AdaLayerNormContinuous
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock, apply_rotary_emb_qwen

Grid = tuple[int, int]
"""A picture's size in tokens: rows, columns."""


@dataclass(frozen=True)
class Positions:
    """Rotary frequencies of one span, complex64, shape (tokens, head_dim / 2), for its pictures and its text."""

    image: torch.Tensor
    text: torch.Tensor


@dataclass(frozen=True)
class Span:
    """One sequence in the pack: an edit, or its unconditional twin under CFG.

    Attributes:
        latents: tokens of the picture being drawn, shape (target tokens, channels).
        references: tokens of the input pictures, shape (reference tokens, channels).
        prompt_embeds: shape (text tokens, joint_attention_dim).
        timestep: 0 to 1000.
    """

    latents: torch.Tensor
    references: torch.Tensor
    prompt_embeds: torch.Tensor
    positions: Positions
    timestep: float

    @property
    def num_image_tokens(self) -> int:
        return len(self.latents) + len(self.references)


@dataclass(frozen=True)
class _Layout:
    """Which tokens of the pack are whose.

    Attributes:
        image_slices, text_slices: each span's place in the two streams.
        image_rows, text_rows: each token's modulation row; row i is span i's timestep, the last row is t = 0.
        targets: places in the image stream of the tokens being drawn.
        image_freqs, text_freqs: the spans' rotary frequencies, one after another.
    """

    image_slices: list[slice]
    text_slices: list[slice]
    image_rows: torch.Tensor
    text_rows: torch.Tensor
    targets: torch.Tensor
    target_rows: torch.Tensor
    image_freqs: torch.Tensor
    text_freqs: torch.Tensor


class PackedTransformer:
    """Runs a QwenImageTransformer2DModel on a pack of spans."""

    def __init__(self, transformer: QwenImageTransformer2DModel) -> None:
        self._model = transformer

    def positions(self, target: Grid, references: Sequence[Grid], num_text_tokens: int) -> Positions:
        """Rotary frequencies as the stock model gives them for one sample: target first, then the references."""
        shapes = [(1, *target), *((1, *grid) for grid in references)]
        image, text = self._model.pos_embed([shapes], max_txt_seq_len=num_text_tokens, device=self._model.device)
        return Positions(image=image, text=text)

    @property
    def max_position(self) -> int:
        """Positions in the rotary table: a picture's half side plus the text must stay below."""
        return len(self._model.pos_embed.pos_freqs)

    def __call__(self, spans: Sequence[Span]) -> list[torch.Tensor]:
        """Each span's velocity prediction, shape (target tokens, channels), in the order of `spans`."""
        model = self._model
        layout = _lay_out(spans, zero_cond_t=model.zero_cond_t)
        image = model.img_in(torch.cat([part for span in spans for part in (span.latents, span.references)]))
        text = model.txt_in(model.txt_norm(torch.cat([span.prompt_embeds for span in spans])))
        conditioning = self._timestep_rows(spans, image)
        for block in model.transformer_blocks:
            text, image = _run_block(block, text, image, conditioning, layout)
        drawn = _norm_out(model.norm_out, image[layout.targets], conditioning, layout.target_rows)
        return list(model.proj_out(drawn).split([len(span.latents) for span in spans]))

    def _timestep_rows(self, spans: Sequence[Span], hidden: torch.Tensor) -> torch.Tensor:
        """Timestep embeddings, one row a span and one for t = 0: shape (spans + 1, D)."""
        timesteps = torch.tensor([span.timestep for span in spans] + [0.0], device=hidden.device)
        # Rounded to the model's dtype before and after the division, as the stock pipeline does.
        rows: torch.Tensor = self._model.time_text_embed(timesteps.to(hidden.dtype) / 1000, hidden)
        return rows


def _lay_out(spans: Sequence[Span], *, zero_cond_t: bool) -> _Layout:
    device = spans[0].latents.device
    image_rows, text_rows, is_target = [], [], []
    for row, span in enumerate(spans):
        reference_row = len(spans) if zero_cond_t else row
        image_rows += [row] * len(span.latents) + [reference_row] * len(span.references)
        is_target += [True] * len(span.latents) + [False] * len(span.references)
        text_rows += [row] * len(span.prompt_embeds)
    rows = torch.tensor(image_rows, device=device)
    targets = torch.tensor(is_target, device=device).nonzero().squeeze(1)
    return _Layout(
        image_slices=list(_slices(span.num_image_tokens for span in spans)),
        text_slices=list(_slices(len(span.prompt_embeds) for span in spans)),
        image_rows=rows,
        text_rows=torch.tensor(text_rows, device=device),
        targets=targets,
        target_rows=rows[targets],
        image_freqs=torch.cat([span.positions.image for span in spans]),
        text_freqs=torch.cat([span.positions.text for span in spans]),
    )


def _slices(lengths: Iterator[int]) -> Iterator[slice]:
    return (slice(start, end) for start, end in pairwise(accumulate(lengths, initial=0)))


def _run_block(
    block: QwenImageTransformerBlock,
    text: torch.Tensor,
    image: torch.Tensor,
    conditioning: torch.Tensor,
    layout: _Layout,
) -> tuple[torch.Tensor, torch.Tensor]:
    image_mod1, image_mod2 = block.img_mod(conditioning).chunk(2, dim=-1)
    text_mod1, text_mod2 = block.txt_mod(conditioning).chunk(2, dim=-1)

    image_in, image_gate = _modulate(block.img_norm1(image), image_mod1, layout.image_rows)
    text_in, text_gate = _modulate(block.txt_norm1(text), text_mod1, layout.text_rows)
    image_out, text_out = _attend(block.attn, image_in, text_in, layout)
    image = image + image_gate * image_out
    text = text + text_gate * text_out

    image_in, image_gate = _modulate(block.img_norm2(image), image_mod2, layout.image_rows)
    text_in, text_gate = _modulate(block.txt_norm2(text), text_mod2, layout.text_rows)
    image = image + image_gate * block.img_mlp(image_in)
    text = text + text_gate * block.txt_mlp(text_in)
    return text, image


def _modulate(x: torch.Tensor, params: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift each token by its own row; the gate for later. Params: (rows, 3D) as shift, scale, gate."""
    shift, scale, gate = (part[rows] for part in params.chunk(3, dim=-1))
    return x * (1 + scale) + shift, gate


def _attend(
    attn: Attention, image: torch.Tensor, text: torch.Tensor, layout: _Layout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Joint attention of each span's text and picture tokens, blind to all other spans."""
    image_q, image_k, image_v = _project(attn, image, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
    text_q, text_k, text_v = _project(
        attn, text, ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k")
    )
    image_q, image_k = (_rotate(x, layout.image_freqs) for x in (image_q, image_k))
    text_q, text_k = (_rotate(x, layout.text_freqs) for x in (text_q, text_k))
    image_parts, text_parts = [], []
    for image_slice, text_slice in zip(layout.image_slices, layout.text_slices, strict=True):
        query, key, value = (
            torch.cat([text_x[text_slice], image_x[image_slice]]).transpose(0, 1)[None]
            for text_x, image_x in ((text_q, image_q), (text_k, image_k), (text_v, image_v))
        )
        out = F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).flatten(1)
        num_text = text_slice.stop - text_slice.start
        text_parts.append(out[:num_text])
        image_parts.append(out[num_text:])
    return attn.to_out[0](torch.cat(image_parts)), attn.to_add_out(torch.cat(text_parts))


def _project(
    attn: Attention, x: torch.Tensor, projections: tuple[str, str, str], norms: tuple[str, str]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value of shape (tokens, heads, head_dim), query and key normalised."""
    query, key, value = (getattr(attn, name)(x).unflatten(-1, (attn.heads, -1)) for name in projections)
    return getattr(attn, norms[0])(query), getattr(attn, norms[1])(key), value


def _rotate(x: torch.Tensor, freqs: torch.Tensor) -> torch.Tensor:
    rotated: torch.Tensor = apply_rotary_emb_qwen(x[None], freqs, use_real=False)[0]
    return rotated


def _norm_out(
    norm: AdaLayerNormContinuous, x: torch.Tensor, conditioning: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """AdaLayerNormContinuous with a row for each token."""
    scale, shift = norm.linear(norm.silu(conditioning).to(x.dtype)).chunk(2, dim=-1)
    normed: torch.Tensor = norm.norm(x) * (1 + scale[rows]) + shift[rows]
    return normed
