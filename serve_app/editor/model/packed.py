"""One transformer call for many edits: all their tokens in one sequence, without padding or mask.

Everything in the MMDiT except attention works token by token, so linear layers, norms and MLPs run once over the whole
pack. Modulation uses one row per token: its edit's timestep, or t = 0 for reference tokens where the checkpoint has
`zero_cond_t`. Attention runs within each span. The arithmetic is that of diffusers' QwenImageTransformer2DModel, on the
modules of that class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import AdaLayerNormContinuous
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock

from serve_app.editor.model.attention import Attend
from serve_app.editor.model.layout import Layout, Layouts, SpanShape
from serve_app.editor.model.modulation import BlockRows, Modulation

Angles = tuple[torch.Tensor, torch.Tensor]
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Span:
    """One sequence in the pack: an edit's conditional or, under CFG, unconditional one.

    Attributes:
        latents: tokens of the output picture, shape (target tokens, channels).
        references: tokens of the input pictures, shape (reference tokens, channels).
        prompt_embeds: shape (text tokens, joint_attention_dim).
        timestep: 0 to 1000.
    """

    latents: torch.Tensor
    references: torch.Tensor
    prompt_embeds: torch.Tensor
    shape: SpanShape
    timestep: float


class PackedTransformer:
    """Runs a QwenImageTransformer2DModel on a pack of spans.

    Args:
        modulation: provides the blocks' modulation parameters.
        attend: attention over a pack in joint order.
        compiled: compile the parts of a block before and after attention. Token counts are dynamic, so that one
            compilation serves all packs.
    """

    def __init__(
        self,
        transformer: QwenImageTransformer2DModel,
        modulation: Modulation,
        attend: Attend,
        *,
        compiled: bool = False,
    ) -> None:
        self._model = transformer
        self.modulation = modulation
        self._attend = attend
        self._layouts = Layouts(transformer)
        self._before: Callable[..., Heads] = _before_attention
        self._after: Callable[..., tuple[torch.Tensor, torch.Tensor]] = _after_attention
        if compiled:
            self._before = torch.compile(_before_attention, dynamic=True)
            self._after = torch.compile(_after_attention, dynamic=True)

    @property
    def max_position(self) -> int:
        """Positions in the rotary table; half a picture's side in tokens plus the text's tokens must stay below it."""
        return len(self._model.pos_embed.pos_freqs)

    def __call__(self, spans: Sequence[Span]) -> list[torch.Tensor]:
        """Each span's velocity prediction, shape (target tokens, channels), in the order of `spans`."""
        model = self._model
        layout = self._layouts.of(tuple(span.shape for span in spans))
        rows = self.modulation.rows([span.timestep for span in spans])
        image = model.img_in(torch.cat([part for span in spans for part in (span.latents, span.references)]))
        text = model.txt_in(model.txt_norm(torch.cat([span.prompt_embeds for span in spans])))
        for index, block in enumerate(model.transformer_blocks):
            text, image = self._run_block(block, text, image, rows.of_block(index), layout)
        drawn = _norm_out(model.norm_out, image[layout.targets], rows.embeds, layout.target_rows)
        return list(model.proj_out(drawn).split([len(span.latents) for span in spans]))

    def _run_block(
        self,
        block: QwenImageTransformerBlock,
        text: torch.Tensor,
        image: torch.Tensor,
        rows: BlockRows,
        layout: Layout,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value = self._before(block, text, image, rows.text, rows.image, layout)
        out = self._attend(query, key, value, layout).flatten(1)
        return self._after(block, text, image, out, rows.text, rows.image, layout)


def _before_attention(
    block: QwenImageTransformerBlock,
    text: torch.Tensor,
    image: torch.Tensor,
    text_params: torch.Tensor,
    image_params: torch.Tensor,
    layout: Layout,
) -> Heads:
    """Query, key and value of all tokens in joint order, shape (tokens, heads, head_dim)."""
    text_in = _modulate(block.txt_norm1(text), text_params.chunk(2, dim=-1)[0], layout.text_rows)
    image_in = _modulate(block.img_norm1(image), image_params.chunk(2, dim=-1)[0], layout.image_rows)
    attn = block.attn
    text_heads = _project(attn, text_in, ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k"))
    image_heads = _project(attn, image_in, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
    text_q, text_k, text_v = _rotate(text_heads, layout.text_angles)
    image_q, image_k, image_v = _rotate(image_heads, layout.image_angles)
    order = layout.joint_order
    return (
        torch.cat([text_q, image_q])[order],
        torch.cat([text_k, image_k])[order],
        torch.cat([text_v, image_v])[order],
    )


def _after_attention(
    block: QwenImageTransformerBlock,
    text: torch.Tensor,
    image: torch.Tensor,
    attended: torch.Tensor,
    text_params: torch.Tensor,
    image_params: torch.Tensor,
    layout: Layout,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The block's output streams, from attention's output (tokens, heads * head_dim) in joint order."""
    streams = attended[layout.stream_order]
    text_params1, text_params2 = text_params.chunk(2, dim=-1)
    image_params1, image_params2 = image_params.chunk(2, dim=-1)
    text = text + _gate(text_params1, layout.text_rows) * block.attn.to_add_out(streams[: layout.num_text])
    image = image + _gate(image_params1, layout.image_rows) * block.attn.to_out[0](streams[layout.num_text :])
    text_in = _modulate(block.txt_norm2(text), text_params2, layout.text_rows)
    image_in = _modulate(block.img_norm2(image), image_params2, layout.image_rows)
    text = text + _gate(text_params2, layout.text_rows) * block.txt_mlp(text_in)
    image = image + _gate(image_params2, layout.image_rows) * block.img_mlp(image_in)
    return text, image


def _modulate(x: torch.Tensor, params: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Scale and shift each token by its row of `params`, shape (rows, 3 * D): shift, scale and gate."""
    shift, scale, _ = params.chunk(3, dim=-1)
    return x * (1 + scale)[rows] + shift[rows]


def _gate(params: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return params.chunk(3, dim=-1)[2][rows]


def _project(attn: Attention, x: torch.Tensor, projections: tuple[str, str, str], norms: tuple[str, str]) -> Heads:
    """Query, key and value of shape (tokens, heads, head_dim), query and key normalised."""
    query, key, value = (getattr(attn, name)(x).unflatten(-1, (attn.heads, -1)) for name in projections)
    return getattr(attn, norms[0])(query), getattr(attn, norms[1])(key), value


def _rotate(heads: Heads, angles: Angles) -> Heads:
    """Rotary embedding of query and key: adjacent pairs are rotated by their token's angles, in float32."""
    query, key, value = heads
    return _rotate_pairs(query, angles), _rotate_pairs(key, angles), value


def _rotate_pairs(x: torch.Tensor, angles: Angles) -> torch.Tensor:
    cosine, sine = (part[:, None] for part in angles)
    even, odd = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2).to(x.dtype)


def _norm_out(
    norm: AdaLayerNormContinuous, x: torch.Tensor, conditioning: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """AdaLayerNormContinuous with one row of `conditioning` per token."""
    scale, shift = norm.linear(norm.silu(conditioning).to(x.dtype)).chunk(2, dim=-1)
    normed: torch.Tensor = norm.norm(x) * (1 + scale[rows]) + shift[rows]
    return normed
