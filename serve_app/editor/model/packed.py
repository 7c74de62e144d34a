"""One transformer call for many edits: all their tokens in one sequence, without padding or mask.

Everything in the MMDiT except attention works token by token, so linear layers, norms and MLPs run once over the whole
pack. Modulation uses one row per token: its edit's timestep, or t = 0 for reference tokens where the checkpoint has
`zero_cond_t`. Attention runs within each span. The arithmetic is that of diffusers' QwenImageTransformer2DModel, on the
modules of that class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.attention import FeedForward
from diffusers.models.normalization import AdaLayerNormContinuous
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock
from torch.nn.functional import silu

from serve_app.editor.model.adapters import AdapterSlabs, BlockAdapters, Edit, PackAdapters, Uses, adders
from serve_app.editor.model.attention import PackAttention
from serve_app.editor.model.layout import Layout, Layouts, SpanShape
from serve_app.editor.model.modulation import ZERO, BlockRows, Modulation, StepRows
from serve_app.editor.model.projections import AddAdapters, Heads, project, rotate

Result = TypeVar("Result")


@dataclass(frozen=True)
class Span:
    """One sequence in the pack: an edit's conditional or, under CFG, unconditional one.

    Attributes:
        latents: tokens of the output picture, shape (target tokens, channels).
        references: tokens of the input pictures, shape (reference tokens, channels).
        prompt_embeds: shape (text tokens, joint_attention_dim).
        timestep: 0 to 1000.
        uses: the adapters that are not fused.
    """

    latents: torch.Tensor
    references: torch.Tensor
    prompt_embeds: torch.Tensor
    shape: SpanShape
    timestep: float
    uses: Uses = ()


class PackedTransformer:
    """Runs a QwenImageTransformer2DModel on a pack of spans.

    Args:
        modulation: provides the blocks' modulation parameters.
        attention: runs over a pack in joint order.
        slabs: hold the adapters of spans that use some.
        compiled: compile the parts of a block before and after attention, once for all packs and once more for all
            packs with adapters.
        gelu_epilogue: the MLPs' first product applies GELU to what it writes, which saves one pass over their hidden
            layer. For linear layers on a CUDA device that are not quantized: on the CPU the same function computes
            GELU's exact form, while the model's is the approximation by tanh.
    """

    def __init__(
        self,
        transformer: QwenImageTransformer2DModel,
        modulation: Modulation,
        attention: PackAttention,
        slabs: AdapterSlabs | None = None,
        *,
        compiled: bool = False,
        gelu_epilogue: bool = False,
    ) -> None:
        self._model = transformer
        self._gelu_epilogue = gelu_epilogue
        self._slabs = slabs
        self.modulation = modulation
        self._attention = attention
        self._layouts = Layouts(transformer, attention.bucket)
        self._before: Callable[..., Heads] = _before_attention
        self._after: Callable[..., tuple[torch.Tensor, torch.Tensor]] = _after_attention
        if compiled:
            self._before = _compile(_before_attention)
            self._after = _compile(_after_attention)

    @property
    def max_position(self) -> int:
        """Positions in the rotary table; half a picture's side in tokens plus the text's tokens must stay below it."""
        return len(self._model.pos_embed.pos_freqs)

    def parts(self, edits: Sequence[Edit]) -> Sequence[Sequence[Edit]]:
        """The parts of a pack that run one after the other: one, unless the device cannot hold all adapters at once.
        Edits with the same adapters are next to each other."""
        if self._slabs is None or not any(edit.uses for edit in edits):
            return [edits]
        return self._slabs.parts(edits)

    def __call__(self, spans: Sequence[Span]) -> list[torch.Tensor]:
        """Each span's velocity prediction, shape (target tokens, channels), in the order of `spans`."""
        model = self._model
        shapes, timesteps = tuple(span.shape for span in spans), [span.timestep for span in spans]
        adapters = self._adapters_of(spans)
        if adapters is None:
            layout, rows = self._layouts.of(shapes), self.modulation.rows(timesteps)
        else:
            layout = self._layouts.of(shapes, own_zeros=True)
            rows = _AdaptedRows(self.modulation.rows([*timesteps, *[ZERO] * (len(spans) - 1)]), adapters)
        image = model.img_in(torch.cat([part for span in spans for part in (span.latents, span.references)]))
        text = model.txt_in(model.txt_norm(torch.cat([span.prompt_embeds for span in spans])))
        for index, block in enumerate(model.transformer_blocks):
            own = None if adapters is None else adapters.of_block(index)
            text, image = self._run_block(block, text, image, rows.of_block(index), layout, own)
        drawn = _norm_out(model.norm_out, image[layout.targets], rows.embeds, layout.target_rows)
        return list(model.proj_out(drawn).split([len(span.latents) for span in spans]))

    def forget(self) -> None:
        """Free the adapters' room on the device."""
        if self._slabs is not None:
            self._slabs.clear()

    def _adapters_of(self, spans: Sequence[Span]) -> PackAdapters | None:
        if self._slabs is None or not any(span.uses for span in spans):
            return None
        shapes = [span.shape for span in spans]
        return self._slabs.pack(
            [span.uses for span in spans],
            [shape.num_text for shape in shapes],
            [shape.num_image for shape in shapes],
        )

    def _run_block(
        self,
        block: QwenImageTransformerBlock,
        text: torch.Tensor,
        image: torch.Tensor,
        rows: BlockRows,
        layout: Layout,
        adapters: BlockAdapters | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        attended = self._attended(block, text, image, rows, layout, adapters)
        return self._after(
            block,
            text,
            image,
            attended,
            rows.text,
            rows.image,
            layout=layout,
            adapters=adapters,
            gelu_epilogue=self._gelu_epilogue and adapters is None,  # an adapter's part is added before GELU
        )

    def _attended(
        self,
        block: QwenImageTransformerBlock,
        text: torch.Tensor,
        image: torch.Tensor,
        rows: BlockRows,
        layout: Layout,
        adapters: BlockAdapters | None,
    ) -> torch.Tensor:
        """Attention's output, shape (tokens, heads * head_dim), text stream first. Query, key and value are freed."""
        query, key, value = self._before(block, text, image, rows.text, rows.image, layout=layout, adapters=adapters)
        if layout.joint_order is None:
            out = self._attention.run(query, key, value, layout)
            return out[: layout.num_tokens].flatten(1)
        order = layout.joint_order
        query, key, value = query[order], key[order], value[order]
        return self._attention.run(query, key, value, layout)[layout.stream_order].flatten(1)


@dataclass(frozen=True)
class _AdaptedRows:
    """The modulation's rows, as BlockRows with the adapters' part."""

    _rows: StepRows
    _adapters: PackAdapters

    @property
    def embeds(self) -> torch.Tensor:
        return self._rows.embeds

    def of_block(self, index: int) -> BlockRows:
        return self._adapters.modulate(index, self._rows.of_block(index), silu(self.embeds))


def _compile(run: Callable[..., Result]) -> Callable[..., Result]:
    """Compile a part of a block for any number of tokens and modulation rows, the first dimension of every input. All
    other sizes are constants of the code: with a symbolic width, its loads would not be aligned."""
    compiled = torch.compile(run, dynamic=False)

    def call(
        block: QwenImageTransformerBlock,
        *inputs: torch.Tensor,
        layout: Layout,
        adapters: BlockAdapters | None,
        **options: bool,
    ) -> Result:
        for tensor in (*inputs, *layout.tensors, *([] if adapters is None else adapters.tensors)):
            torch._dynamo.mark_dynamic(tensor, 0)
        return compiled(block, *inputs, layout=layout, adapters=adapters, **options)

    return call


def _before_attention(
    block: QwenImageTransformerBlock,
    text: torch.Tensor,
    image: torch.Tensor,
    text_params: torch.Tensor,
    image_params: torch.Tensor,
    layout: Layout,
    adapters: BlockAdapters | None,
) -> Heads:
    """Query, key and value, shape (rows, heads, head_dim): of the text stream, the image stream, and the padding."""
    text_params, image_params = text_params.chunk(2, dim=-1)[0], image_params.chunk(2, dim=-1)[0]
    add_text, add_image = adders(adapters)
    text_q, text_k, text_v = project(
        block.attn, _modulate(block.txt_norm1(text), text_params, layout.text_rows), "text", add_text
    )
    image_q, image_k, image_v = project(
        block.attn, _modulate(block.img_norm1(image), image_params, layout.image_rows), "image", add_image
    )
    text_q, text_k = rotate(text_q, layout.text_angles), rotate(text_k, layout.text_angles)
    # One after the other, so that no more than one is there twice.
    image_q = rotate(image_q, layout.image_angles)
    image_k = rotate(image_k, layout.image_angles)
    padding = () if layout.padding is None else (layout.padding,)
    return (
        torch.cat([text_q, image_q, *padding]),
        torch.cat([text_k, image_k, *padding]),
        torch.cat([text_v, image_v, *padding]),
    )


def _after_attention(
    block: QwenImageTransformerBlock,
    text: torch.Tensor,
    image: torch.Tensor,
    attended: torch.Tensor,
    text_params: torch.Tensor,
    image_params: torch.Tensor,
    layout: Layout,
    adapters: BlockAdapters | None,
    gelu_epilogue: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The block's output streams, from attention's output (tokens, heads * head_dim), text stream first."""
    attended_text, attended_image = attended[: len(text)], attended[len(text) :]
    add_text, add_image = adders(adapters)
    text_params1, text_params2 = text_params.chunk(2, dim=-1)
    image_params1, image_params2 = image_params.chunk(2, dim=-1)
    # Without names for the layers' outputs, which would keep them until the MLPs have run.
    text = text + _gate(text_params1, layout.text_rows) * add_text(
        "attn.to_add_out", attended_text, block.attn.to_add_out(attended_text)
    )
    image = image + _gate(image_params1, layout.image_rows) * add_image(
        "attn.to_out.0", attended_image, block.attn.to_out[0](attended_image)
    )
    text_in = _modulate(block.txt_norm2(text), text_params2, layout.text_rows)
    image_in = _modulate(block.img_norm2(image), image_params2, layout.image_rows)
    # The MLPs first: their hidden layers are the peak of memory, at which the gates need not be there.
    text = text + (
        _mlp(block.txt_mlp, text_in, "txt_mlp", add_text, gelu_epilogue) * _gate(text_params2, layout.text_rows)
    )
    image = image + (
        _mlp(block.img_mlp, image_in, "img_mlp", add_image, gelu_epilogue) * _gate(image_params2, layout.image_rows)
    )
    return text, image


def _mlp(mlp: FeedForward, x: torch.Tensor, name: str, add: AddAdapters, gelu_epilogue: bool) -> torch.Tensor:
    activation, last = mlp.net[0], mlp.net[2]
    if gelu_epilogue:
        first = activation.proj
        hidden = torch._addmm_activation(first.bias, x, first.weight.t(), use_gelu=True)
    else:
        hidden = activation.gelu(add(f"{name}.net.0.proj", x, activation.proj(x)))
    return add(f"{name}.net.2", hidden, last(hidden))


def _modulate(x: torch.Tensor, params: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Scale and shift each token by its row of `params`, shape (rows, 3 * D): shift, scale and gate."""
    shift, scale, _ = params.chunk(3, dim=-1)
    return x * (1 + scale)[rows] + shift[rows]


def _gate(params: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return params.chunk(3, dim=-1)[2][rows]


def _norm_out(
    norm: AdaLayerNormContinuous, x: torch.Tensor, conditioning: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """AdaLayerNormContinuous with one row of `conditioning` per token."""
    scale, shift = norm.linear(norm.silu(conditioning).to(x.dtype)).chunk(2, dim=-1)
    normed: torch.Tensor = norm.norm(x) * (1 + scale[rows]) + shift[rows]
    return normed
