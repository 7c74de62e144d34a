"""The stages of an edit on a card that is not there: real widths and shapes, but no numbers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from serve_app.editor.loading.quantize import is_quantizable
from serve_app.editor.model.attention import PackAttention, varlen_attention
from serve_app.editor.model.layout import Layout, Layouts, SpanShape
from serve_app.editor.model.modulation import LiveModulation, is_modulation
from serve_app.editor.model.packed import PackedTransformer, Span
from serve_app.editor.model.vae import StillVae
from serve_app.edits.sizes import LATENT_PX
from serve_app.tools.bench.counting import Op, Recorder
from serve_app.tools.live_bytes import LiveBytes

TIMESTEP = 750.0
HOPPER = (9, 0)
"""Compute capability of the cards whose attention is recorded."""


@dataclass(frozen=True, eq=False)
class Trace:
    """What a stage does. Compared by identity, so that what is computed from it can be cached.

    Attributes:
        ops: the operations of eager execution, in order.
        kept: storages that outlive the compiled call which writes them.
        quantizable, modulation: storages of those weights.
    """

    ops: tuple[Op, ...]
    kept: frozenset[int] = frozenset()
    quantizable: frozenset[int] = frozenset()
    modulation: frozenset[int] = frozenset()


class FakeStep:
    """A packed step of a transformer with a few blocks, in bfloat16.

    Args:
        like: the transformer whose configuration is taken.
        compiler: stands in for torch.compile; None: blocks run eagerly.
    """

    def __init__(
        self,
        like: QwenImageTransformer2DModel,
        shapes: Sequence[SpanShape],
        attention: PackAttention,
        *,
        num_layers: int = 2,
        compiler: Callable[..., object] | None = None,
    ) -> None:
        self._card = FakeTensorMode()
        with self._on_card(), _bfloat16():
            self.transformer = QwenImageTransformer2DModel.from_config(like.config, num_layers=num_layers)
            self._spans = [_span(shape, like) for shape in shapes]
        layout = self._faked(_layout(like, shapes, attention.bucket))
        with _compiling(compiler):
            modulation = LiveModulation(self.transformer)
            self._packed = PackedTransformer(self.transformer, modulation, attention, compiled=compiler is not None)
        self._packed._layouts.of = lambda _: layout  # type: ignore[assignment]  # as fake tensors have no indices

    def run(self, mode: LiveBytes | None = None) -> list[torch.Tensor]:
        """The velocities. `mode` sees the operations."""
        with self._on_card(), torch.no_grad():
            if mode is None:
                return self._packed(self._spans)
            with mode:
                return self._packed(self._spans)

    @contextmanager
    def _on_card(self) -> Iterator[None]:
        with self._card, torch.device("cuda"):
            yield

    def _faked(self, layout: Layout) -> Layout:
        def fake(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(fake, value))
            return self._card.from_tensor(value).to("cuda") if isinstance(value, torch.Tensor) else value

        with self._card:
            return replace(layout, **{field.name: fake(getattr(layout, field.name)) for field in fields(layout)})


def trace_step(like: QwenImageTransformer2DModel, shapes: Sequence[SpanShape], num_layers: int) -> Trace:
    """A step in 16 bits, with the calls marked that torch.compile would compile."""
    recorder = Recorder()

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout) -> torch.Tensor:
        out = torch.empty_like(query)
        width = query.shape[1:].numel()
        recorder.attention(sum(4 * width * length**2 for length in layout.lengths), [query, key, value], out)
        return out

    attention = PackAttention(attend, varlen_attention(HOPPER).bucket)
    step = FakeStep(like, shapes, attention, num_layers=num_layers, compiler=recorder.compiled)
    step.run(recorder)
    weights = {name: recorder.number(weight) for name, weight in step.transformer.named_parameters()}
    modules = dict(step.transformer.named_modules())
    quantizable = [name for name, module in modules.items() if is_quantizable(module, name)]
    return Trace(
        tuple(recorder.ops),
        frozenset(recorder.kept),
        frozenset(weights[f"{name}.weight"] for name in quantizable),
        frozenset(number for name, number in weights.items() if is_modulation(name)),
    )


def trace(run: Callable[[], object]) -> Trace:
    """A stage that works on the meta device, eagerly."""
    with torch.no_grad(), Recorder() as recorder:
        run()
    return Trace(tuple(recorder.ops))


def encode_text(
    text_encoder: Qwen2_5_VLForConditionalGeneration, num_tokens: int, num_pictures: int, condition_px: int
) -> Callable[[], object]:
    """Qwen2.5-VL on the meta device, from patches and embeddings on, for one prompt of `num_tokens` tokens with
    square pictures of `condition_px` pixels a side. Where its windows begin is computed in advance."""
    dtype = torch.bfloat16
    text_encoder = deepcopy(text_encoder).to(dtype=dtype)
    vision, text = text_encoder.model.visual, text_encoder.model.language_model
    config = vision.config
    side = condition_px // config.patch_size
    grid = torch.tensor([[1, side, side]] * num_pictures)
    merge, patch = config.spatial_merge_size, config.patch_size
    window_index, window_bounds = get_vision_window_index(
        grid, spatial_merge_size=merge, window_size=config.window_size, patch_size=patch
    )
    patch_numbers = config.in_channels * config.temporal_patch_size * patch**2

    def run() -> object:
        pixels = torch.empty(side**2 * num_pictures, patch_numbers, device="meta", dtype=dtype)
        pictures = vision(
            pixels,
            grid_thw=grid,
            position_ids=get_vision_position_ids(grid, merge).to("meta"),
            cu_seqlens=get_vision_cu_seqlens(grid),
            window_index=window_index.to("meta"),
            cu_window_seqlens=window_bounds,
        )
        embeds = torch.empty(1, num_tokens, text.config.hidden_size, device="meta", dtype=dtype)
        positions = torch.empty(3, 1, num_tokens, device="meta", dtype=torch.long)
        return pictures, text(inputs_embeds=embeds, position_ids=positions, use_cache=False)

    return run


def vae_stages(vae: AutoencoderKLQwenImage, side_px: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Encoding and decoding a square picture on the meta device in two dimensions."""
    dtype = torch.bfloat16
    vae = nn.Module.to(deepcopy(vae), dtype=dtype)  # the method of diffusers emits a needless warning
    still = StillVae(vae).to(memory_format=torch.channels_last)
    picture = torch.empty(1, 3, side_px, side_px, device="meta", dtype=dtype).to(memory_format=torch.channels_last)
    latent_side = side_px // LATENT_PX
    latents = torch.empty(1, vae.config.z_dim, latent_side, latent_side, device="meta", dtype=dtype)
    return lambda: still.encode(picture), lambda: still.decode(latents)


def _span(shape: SpanShape, like: QwenImageTransformer2DModel) -> Span:
    channels, hidden = like.config.in_channels, like.config.joint_attention_dim
    num_references = shape.num_image - shape.num_target
    return Span(
        torch.empty(shape.num_target, channels),
        torch.empty(num_references, channels),
        torch.empty(shape.num_text, hidden),
        shape,
        TIMESTEP,
    )


def _layout(like: QwenImageTransformer2DModel, shapes: Sequence[SpanShape], bucket: int) -> Layout:
    """The real layout on the CPU. A transformer without blocks is enough for it."""
    with _bfloat16():
        small = QwenImageTransformer2DModel.from_config(like.config, num_layers=0)
    return Layouts(small, bucket).of(tuple(shapes))


@contextmanager
def _bfloat16() -> Iterator[None]:
    """Tensors have this dtype unless they are given another."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _compiling(compiler: Callable[..., object] | None) -> Iterator[None]:
    before = torch.compile
    if compiler is not None:
        torch.compile = compiler  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = before
