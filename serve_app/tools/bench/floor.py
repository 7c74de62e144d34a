"""Lower bounds of run times: a stage's floating-point operations at the device's measured rate."""

from collections.abc import Callable

import torch
from diffusers import QwenImageTransformer2DModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from serve_app.editor.model.layout import SpanShape
from serve_app.editor.model.modulation import is_modulation
from serve_app.tools.bench.timing import timed

_CUDA_SIDE = 8192
_CPU_SIDE = 1536
_REPEATS = 10


def step_flops(transformer: QwenImageTransformer2DModel, shapes: list[SpanShape]) -> int:
    """Floating-point operations of one packed step, counted from the modules: linear layers for each token of their
    stream, and attention within each span. Norms, activations and modulation are left out: this is a lower bound."""
    num_text = sum(shape.num_text for shape in shapes)
    num_image = sum(shape.num_image for shape in shapes)
    num_target = sum(shape.num_target for shape in shapes)
    tokens = {"text": num_text, "image": num_image, "target": num_target, "none": 0}
    linear = sum(
        2 * module.in_features * module.out_features * tokens[_stream(name)]
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
    )
    attention = sum(4 * transformer.inner_dim * shape.num_tokens**2 for shape in shapes)
    total: int = linear + attention * len(transformer.transformer_blocks)
    return total


def counted_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of a stage's matrix products and convolutions, counted while it runs."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    total: int = counter.get_total_flops()
    return total


def _stream(name: str) -> str:
    """The tokens that a linear layer runs on; "none" for modulation and timestep embedding, which run on a few rows."""
    if is_modulation(name) or name.startswith(("time_text_embed", "norm_out")):
        return "none"
    if name.startswith("proj_out"):
        return "target"
    is_text = any(part in name for part in ("txt_", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"))
    return "text" if is_text else "image"


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a large matrix product on random data: zeros run faster."""
    side = _CUDA_SIDE if device.type == "cuda" else _CPU_SIDE
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    one @ other
    seconds = timed(lambda: [one @ other for _ in range(_REPEATS)])
    return 2 * side**3 * _REPEATS / seconds


def copy_rate(device: torch.device) -> float:
    """Bytes per second of a copy on the device, read and written bytes both counted."""
    num_bytes = 2**32 if device.type == "cuda" else 2**28
    source = torch.randint(2**62, (num_bytes // torch.int64.itemsize,), device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = timed(lambda: [target.copy_(source) for _ in range(_REPEATS)])
    return 2 * num_bytes * _REPEATS / seconds
