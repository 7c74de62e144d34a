"""Makes the memory plans of an application's deployments, with the settings that would save memory."""

from collections.abc import Iterator, Mapping

from serve_app.config import AppSettings
from serve_app.tools.check.plan import GpuPlan


def make_plans(settings: AppSettings, num_gpus: Mapping[str, float]) -> tuple[GpuPlan, ...]:
    """Make a plan for each deployment on a GPU; none for settings that use no GPU.

    Args:
        num_gpus: by deployment name. A replica with more than 1 still uses one card.
    """
    if not settings.gpu_deployments:
        return ()
    # Imported here: torch and the model libraries take seconds, which a file without a GPU does not need.
    from serve_app.tools.check.memory import editor_rows, rewriter_rows

    rows = {"Editor": editor_rows, "Rewriter": rewriter_rows}
    savings = {"Editor": _editor_savings, "Rewriter": _rewriter_savings}
    return tuple(
        GpuPlan(name, rows[name](settings), settings.card, min(1.0, num_gpus[name]), tuple(savings[name](settings)))
        for name in settings.gpu_deployments
    )


def _editor_savings(settings: AppSettings) -> Iterator[str]:
    editor = settings.editor
    if not editor.adaln_tables:
        yield "editor.adaln_tables: true"
    if editor.quantization != "int4":
        yield "editor.quantization: " + ("fp8 or int4" if editor.quantization == "none" else "int4")
    if editor.text_encoder_device != "cpu":
        yield "editor.text_encoder_device: cpu"
    if not editor.vae_tiling:
        yield "editor.vae_tiling: true (with editor.vae: stock)"
    yield "smaller packs by editor.max_pack_tokens and limits.max_pictures_per_edit"


def _rewriter_savings(settings: AppSettings) -> Iterator[str]:
    yield "rewriter.source to a smaller Qwen3-VL"
    yield "smaller rewriter.max_batch_tokens and rewriter.max_picture_px"
    yield "rewriter.device: cpu"
