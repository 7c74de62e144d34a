"""The edit model at its real width on a CUDA card that this machine lacks, with tensors that have shapes but no data.

Under FakeTensorMode, torch computes each result's shape, dtype and device. So tests see which tensors are on the CPU,
what is copied, where the host would wait for the card, and how much memory is alive. Not seen: numbers, times, what a
kernel allocates for itself, and which kernel a card would choose. Compiled code is not run; eager code needs at least
its memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only
from transformers import Qwen2_5_VLForConditionalGeneration

from serve_app.config import EditorSettings
from serve_app.editor.loading.load import has_gelu_epilogue
from serve_app.editor.loading.quantize import Quantizer, choose_quantizer
from serve_app.editor.model.attention import choose_attention
from serve_app.editor.model.edit_model import Draft, EditModel, Prompt
from serve_app.editor.model.layout import Layout, Layouts, SpanShape
from serve_app.editor.model.modulation import LiveModulation, Modulation, TableModulation
from serve_app.editor.model.packed import PackedTransformer
from serve_app.editor.model.projections import fuse_projections
from serve_app.editor.model.prompt_encoder import PromptEncoder
from serve_app.editor.model.schedule import make_schedule, tabled_timesteps
from serve_app.editor.model.vae import Vae
from serve_app.edits.sizes import TOKEN_PX, Size
from serve_app.tools.live_bytes import LiveBytes, tensors_of
from serve_app.weights.architectures import EditArchitecture

NUM_BLOCKS = 2
HAS_TORCHAO = find_spec("torchao") is not None
CUDA = torch.device("cuda")
HOPPER, ADA = (9, 0), (8, 9)
"""Compute capabilities: H100 and H200; L40S, L4 and RTX 4090."""


@dataclass
class Work:
    """What was done on the card.

    Attributes:
        uploads, downloads: copies from the CPU to the card, and back, as operations.
        mixed: operations on tensors of both, which need a copy or fail.
        waits: operations whose result the host reads, for which it waits.
        events: for each event that the host waits for, the number of launches before it.
        on_cpu: operations on the CPU alone, but for those that create a tensor.
        launches: operations on the card, but for views.
        bytes: what these read and write.
        peak: bytes alive at once of the tensors created meanwhile.
    """

    uploads: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    on_cpu: list[str] = field(default_factory=list)
    launches: list[str] = field(default_factory=list)
    bytes: int = 0
    peak: int = 0


class _Watch(LiveBytes):  # type: ignore[no-untyped-call]  # torch leaves its dispatch modes untyped
    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        if func is torch.ops.aten._local_scalar_dense.default:
            self._work.waits.append(str(func))
            return True if args[0].dtype is torch.bool else args[0].dtype.is_floating_point + 0
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self._sort(func, tensors_of((args, kwargs)), tensors_of(out))
        self._work.peak = self.peak
        return out

    def _sort(self, func: Any, read: list[torch.Tensor], written: list[torch.Tensor]) -> None:
        # A tensor without dimensions on the CPU is passed as a number.
        if str(func) in _ON_NO_DEVICE:
            return
        sources = {tensor.device.type for tensor in read if tensor.ndim}
        results = {tensor.device.type for tensor in written if tensor.ndim}
        work, name = self._work, str(func)
        if sources == {"cpu"} and results == {"cuda"}:
            work.uploads.append(name)
        elif sources == {"cuda"} and results == {"cpu"}:
            work.downloads.append(name)
        elif len(sources | results) > 1:
            work.mixed.append(name)
        elif sources == {"cpu"}:
            work.on_cpu.append(name)
        if "cuda" in results and not func.is_view:
            work.launches.append(name)
            work.bytes += sum(tensor.nbytes for tensor in (*read, *written))


_ON_NO_DEVICE = ("aten.empty.memory_format", "aten.detach.default", "aten.lift_fresh.default", "prim.device.default")


class FakeCard:
    """Creates tensors and models on a card of a compute capability, and runs code there."""

    def __init__(self, capability: tuple[int, int] = HOPPER) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._capability = capability
        self._work = Work()

    @contextmanager
    def on(self) -> Iterator[None]:
        """Run the product's code on fake tensors."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "get_device_capability", lambda *_: self._capability)
            patch.setattr(torch.cuda, "Event", lambda **_: _Event(self))
            patch.setattr(nn.Module, "_apply", _replace_parameters)
            patch.setattr(FakeTensor, "numpy", _zeros, raising=False)
            patch.setattr(Layouts, "_make", _make_really(self, Layouts._make))
            patch.setattr(F, "scaled_dot_product_attention", _flash_where_a_card_has_it(F.scaled_dot_product_attention))
            # Not inference_mode, under which torch dispatches coarser operations.
            with self._mode, torch.no_grad():
                yield

    def tensor(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        with self._mode:
            return torch.empty(shape, device=CUDA, dtype=dtype)

    def put(self, real: torch.Tensor) -> torch.Tensor:
        """A fake of the tensor: on the card if it is on the meta device, else on the CPU."""
        device = CUDA if real.is_meta else real.device
        with self._mode:
            return torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device=device)

    def watch(self, run: Callable[[], object]) -> Work:
        """What `run` does on the card."""
        work = self._work = Work()
        with self.on(), _Watch(work):
            run()
        return work


class _Event:
    """In place of torch.cuda.Event."""

    def __init__(self, card: FakeCard) -> None:
        self._card = card
        self._num_launches = 0

    def record(self) -> None:
        self._num_launches = len(self._card._work.launches)

    def synchronize(self) -> None:
        self._card._work.events.append(self._num_launches)


def _zeros(fake: FakeTensor) -> np.ndarray:
    with _disable_current_modes():
        return torch.zeros(fake.shape, dtype=fake.dtype).numpy()


def _flash_where_a_card_has_it(attend: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Without a card, scaled_dot_product_attention falls back to plain products, with all scores in memory."""

    def attended(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: object, **options: object
    ) -> torch.Tensor:
        if query.device.type == "cpu" or args or options:
            return attend(query, key, value, *args, **options)
        out: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return out

    return attended


def _replace_parameters(
    module: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
) -> nn.Module:
    """nn.Module._apply, which cannot swap the data of fake parameters."""
    for child in module.children():
        _replace_parameters(child, fn)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(fn(parameter), parameter.requires_grad)
    module._buffers.update({name: fn(buffer) for name, buffer in module._buffers.items() if buffer is not None})
    return module


def _make_really(card: FakeCard, make: Callable[[Layouts, tuple[SpanShape, ...]], Layout]) -> Callable[..., Layout]:
    """Layouts._make with real indices, whose number depends on their data. The meta device takes the card's part: what
    the code moves to the model's device becomes a tensor on the card, what it leaves on the CPU stays there."""
    host = QwenImageTransformer2DModel(num_layers=0, num_attention_heads=1, zero_cond_t=True)

    def made(self: Layouts, shapes: tuple[SpanShape, ...]) -> Layout:
        model = self._model
        stand_in = {"device": torch.device("meta"), "dtype": model.dtype, "config": model.config}
        really = object.__new__(Layouts)
        really.__dict__.update(
            self.__dict__, _model=SimpleNamespace(**stand_in, zero_cond_t=model.zero_cond_t, pos_embed=host.pos_embed)
        )
        with _disable_current_modes():
            real = make(really, shapes)
        values = {each.name: getattr(real, each.name) for each in fields(real)}
        return replace(real, **tree_map_only(torch.Tensor, card.put, values))

    return made


def edit_model(card: FakeCard, architecture: EditArchitecture, settings: EditorSettings) -> EditModel:
    """The model that the settings describe, with NUM_BLOCKS blocks, made on the card as loading leaves it there."""
    transformer = shallow_transformer(card, architecture, settings)
    timesteps = tabled_timesteps(settings.scheduler) if settings.adaln_tables else []
    dtype = getattr(torch, settings.dtype)
    with card.on():
        modulation: Modulation = LiveModulation(transformer)
        if settings.adaln_tables:
            modulation = TableModulation(transformer, timesteps, CUDA)
        if settings.quantization != "none":
            _quantize(transformer, settings)
        packed = PackedTransformer(
            transformer,
            modulation,
            choose_attention(settings.attention, CUDA),
            gelu_epilogue=has_gelu_epilogue(settings),
        )
        vae = make(lambda: AutoencoderKLQwenImage.from_config(architecture.vae.config), CUDA, dtype)
        if settings.vae_tiling:
            vae.enable_tiling()
        return EditModel(
            packed,
            Vae(vae, settings.vae),
            cast(PromptEncoder, SimpleNamespace(device=CUDA)),
            settings.scheduler,
            architecture.vae.config.z_dim,
            device=CUDA,
            dtype=dtype,
        )


def shallow_transformer(
    card: FakeCard, architecture: EditArchitecture, settings: EditorSettings
) -> QwenImageTransformer2DModel:
    config = {name: value for name, value in architecture.transformer.config.items() if not name.startswith("_")}
    config["num_layers"] = NUM_BLOCKS
    with card.on():
        return make(lambda: QwenImageTransformer2DModel(**config).eval(), CUDA, getattr(torch, settings.dtype))


def shallow_text_encoder(
    card: FakeCard, architecture: EditArchitecture, device: torch.device
) -> Qwen2_5_VLForConditionalGeneration:
    config = deepcopy(architecture.text_encoder.config)
    config.text_config.num_hidden_layers = NUM_BLOCKS
    config.text_config.layer_types = config.text_config.layer_types[:NUM_BLOCKS]
    config.vision_config.depth = NUM_BLOCKS
    with card.on():
        return make(lambda: Qwen2_5_VLForConditionalGeneration(config).eval(), device, torch.bfloat16)


def make(build: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    """Build a model on a device with floating-point weights in `dtype`."""
    torch.set_default_dtype(dtype)
    try:
        with device:
            return build()
    finally:
        torch.set_default_dtype(torch.float32)


@dataclass(frozen=True)
class FakeEdit:
    """An edit by its sizes.

    Attributes:
        num_text: tokens of its prompt and, under CFG, of the negative one.
    """

    size: Size
    references: tuple[Size, ...]
    num_text: tuple[int, ...] = (300,)
    num_steps: int = 4

    @property
    def num_tokens(self) -> int:
        return sum(self.num_text) + len(self.num_text) * sum(each.num_tokens for each in (self.size, *self.references))


def draft(card: FakeCard, edit: FakeEdit, settings: EditorSettings) -> Draft:
    """The edit as EditModel.begin leaves it."""
    grids = [(size.height // TOKEN_PX, size.width // TOKEN_PX) for size in (edit.size, *edit.references)]
    return Draft(
        size=edit.size,
        schedule=make_schedule(settings.scheduler, edit.num_steps, edit.size.num_tokens),
        guidance=4.0,
        prompts=tuple(
            Prompt(card.tensor(number, 3584), SpanShape(grids[0], tuple(grids[1:]), number)) for number in edit.num_text
        ),
        references=card.tensor(sum(each.num_tokens for each in edit.references), 64),
        latents=card.tensor(edit.size.num_tokens, 64),
    )


def _quantize(transformer: QwenImageTransformer2DModel, settings: EditorSettings) -> None:
    """As when loading. Without the extra `quantize`, the layers are joined as for that and keep 16 bits."""
    prepare: Quantizer | Callable[[QwenImageTransformerBlock], None] = fuse_projections
    with pytest.MonkeyPatch.context() as patch:
        if HAS_TORCHAO:
            # It asks the driver, which is not there.
            patch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda _: None)
            prepare = choose_quantizer(settings.quantization, CUDA)
        for block in transformer.transformer_blocks:
            prepare(block)
