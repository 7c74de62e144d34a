"""The host memory of an editor on a GPU: what it keeps there, and what loading takes in addition.

Weights go from their files to the GPU one by one. The files are mapped into memory: what was read of them is in the
system's cache, which gives it up when memory is short, so it does not count. A text encoder that runs on the CPU does,
though it is mapped too: without its pages in memory, each prompt would read them again.
"""

from collections.abc import Iterator

import torch
from diffusers import QwenImageTransformer2DModel

from serve_app.config import AppSettings, EditorSettings
from serve_app.tools.check.memory import weight_bytes
from serve_app.tools.check.plan import GB, Row
from serve_app.weights.architectures import find_edit_model

PROCESS_BYTES = 4_000_000_000  # Python, torch with CUDA's libraries, and pictures on their way; estimated.


def host_rows(settings: AppSettings) -> tuple[Row, ...]:
    """What one replica of the editor takes; the last row does while it loads only."""
    model = find_edit_model(settings.editor.base)
    loading = Row("while loading", None if model is None else loading_bytes(model.transformer))
    return Row("process (estimated)", PROCESS_BYTES), *kept_rows(settings.editor), loading


def kept_rows(editor: EditorSettings) -> Iterator[Row]:
    """The weights that stay on the host."""
    model = find_edit_model(editor.base)
    dtype: torch.dtype = getattr(torch, editor.dtype)
    if editor.text_encoder_device == "cpu":
        yield Row("text encoder weights", None if model is None else weight_bytes(model.text_encoder, dtype))


def loading_bytes(transformer: QwenImageTransformer2DModel) -> int:
    """An upper bound: one weight in float32. A weight goes from its mapped file to the GPU and is fused there; the host
    holds the parts of it that are compared with the LoRA files. What rows for further timesteps take is less: one
    modulation weight at a time is read again."""
    largest: int = max(parameter.numel() for parameter in transformer.parameters())
    return torch.float32.itemsize * largest


def describe_host(settings: AppSettings) -> Iterator[str]:
    """The rows as lines with a title and their sum."""
    yield "Editor, host memory of one replica:"
    rows = host_rows(settings)
    unknown = " of the known rows" if any(row.num_bytes is None for row in rows) else ""
    rows = (*rows, Row(f"sum{unknown}", sum(row.num_bytes or 0 for row in rows)))
    width = max(len(row.name) for row in rows)
    for row in rows:
        size = "unknown" if row.num_bytes is None else f"{row.num_bytes / GB:.1f} GB"
        yield f"  {row.name:<{width}}  {size:>7}"
