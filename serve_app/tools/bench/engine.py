"""The benchmark's sections, each of which runs its contenders in turns and adds rows to the results."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageEditPlusPipeline

from serve_app.config import AppSettings
from serve_app.editor.loading.load import as_edit_model
from serve_app.editor.model.edit_model import Draft, EditModel
from serve_app.editor.model.vae import StillVae
from serve_app.edits.images import encode_picture
from serve_app.edits.sizes import LATENT_PX, fit_area
from serve_app.tools.bench.contenders import (
    begin,
    draw_one_by_one,
    draw_packed,
    draw_stock,
    orbit_edits,
    plain_edit,
    stock_pipeline,
    unlike_edits,
)
from serve_app.tools.bench.floor import copy_rate, counted_flops, matmul_rate, step_flops
from serve_app.tools.bench.names import (
    EDIT_TOKENS,
    ONE_BY_ONE,
    PACKED,
    STAGES,
    STEP,
    TEXT_ENCODER,
    VAE_DECODE,
    VAE_ENCODE,
    step_section,
)
from serve_app.tools.bench.timing import in_turns

PACK_SIZES = (1, 2, 4, 8, 16)
NO_CACHE = {"latents_cache_bytes": 0, "prompts_cache_bytes": 0}


@dataclass(frozen=True)
class Row:
    """One row of the results.

    Attributes:
        speed_up: how many times faster than the section's first row.
        flops: floating-point operations of one run, where they are counted.
        floor_fraction: the time that these operations take at the device's measured matmul rate, as a fraction of the
            median.
    """

    section: str
    name: str
    median_s: float
    speed_up: float | None = None
    flops: int | None = None
    floor_fraction: float | None = None


@dataclass
class Bench:
    """What the sections share: the models on the same weights, and the results so far.

    Attributes:
        on_run: called after each run, for a progress bar.
        facts: single numbers in SI units.
    """

    settings: AppSettings
    pipeline: QwenImageEditPlusPipeline
    rounds: int
    on_run: Callable[[], None]
    rows: list[Row] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)

    def model(self, **changes: object) -> EditModel:
        """Our model on the pipeline's weights, with changed editor settings. Settings that remove weights from the
        pipeline are off, because the sections share it."""
        update = {"adaln_tables": False, "quantization": "none", **changes}
        return as_edit_model(self.pipeline, self.settings.editor.model_copy(update=update))

    def measure_rates(self) -> None:
        device, dtype = self.pipeline.transformer.device, self.pipeline.transformer.dtype
        self.facts["matmul rate, FLOP/s"] = matmul_rate(device, dtype)
        self.facts["copy rate, B/s"] = copy_rate(device)

    def time_stage(self, name: str, stage: Callable[[], object], flops: int | None = None) -> None:
        timing = in_turns({name: stage}, self.rounds, self.on_run)[name]
        floor_s = None if flops is None else flops / self.facts["matmul rate, FLOP/s"]
        fraction = None if floor_s is None else floor_s / timing.median_s
        row = Row(STAGES, name, timing.median_s, flops=flops, floor_fraction=fraction)
        self.rows.append(row)

    def time_device_stage(self, name: str, stage: Callable[[], object]) -> None:
        self.time_stage(name, torch.inference_mode()(stage), counted_flops(stage))

    def compare(self, section: str, contenders: dict[str, Callable[[], object]]) -> None:
        timings = in_turns(contenders, self.rounds, self.on_run)
        first = next(iter(timings.values())).median_s
        self.rows += [Row(section, name, timing.median_s, first / timing.median_s) for name, timing in timings.items()]


@dataclass(frozen=True)
class Result:
    """All results of a run. `facts` are single numbers in SI units."""

    config: str
    rounds: int
    rows: tuple[Row, ...]
    facts: dict[str, float]


def run_sections(
    settings: AppSettings, pipeline: QwenImageEditPlusPipeline, rounds: int, on_run: Callable[[str], None]
) -> tuple[tuple[Row, ...], dict[str, float]]:
    """Run every section on the pipeline's weights; `on_run` gets the section's name after each run."""
    bench = Bench(settings, pipeline, rounds, lambda: None)
    for section in SECTIONS:
        bench.on_run = partial(on_run, section.__name__.replace("_", " "))
        section(bench)
    return tuple(bench.rows), bench.facts


def stages(bench: Bench) -> None:
    """The time of each stage of one edit, and for stages on the device also the fraction of its matmul rate."""
    edit, model = plain_edit(bench.settings.sizes), bench.model(**NO_CACHE)
    inputs = [inputs for _, inputs in model.prepare(edit.request, edit.pictures).prompts]
    (draft,) = begin(model, [edit])
    pixels, latents = model.finish(draft), draft.latents.clone()
    flops_per_step = step_flops(bench.pipeline.transformer, [span.shape for span in draft.spans])
    bench.measure_rates()
    bench.facts[EDIT_TOKENS] = float(edit.request.num_tokens(edit.pictures))
    bench.time_stage("prepare (CPU)", lambda: model.prepare(edit.request, edit.pictures))
    bench.time_device_stage(TEXT_ENCODER, lambda: model.prompt_encoder.encode(inputs))
    bench.time_device_stage(VAE_ENCODE, lambda: model.vae.encode(edit.pictures[0].vae_pixels))
    bench.time_stage(STEP, partial(_step, model, [draft]), flops_per_step)
    bench.time_device_stage(VAE_DECODE, lambda: model.vae.decode(latents, draft.size))
    bench.time_stage("PNG (CPU)", lambda: encode_picture(pixels, edit.request.output))


def single_edit(bench: Bench) -> None:
    edits = [plain_edit(bench.settings.sizes)]
    with_stock_vae, with_still_vae = bench.model(vae="stock", **NO_CACHE), bench.model(vae="still", **NO_CACHE)
    with stock_pipeline(bench.pipeline, bench.settings.editor, bench.settings.sizes) as pipeline:
        bench.compare(
            "one edit",
            {
                "diffusers": lambda: draw_stock(pipeline, edits),
                "engine, stock VAE": lambda: draw_packed(with_stock_vae, edits),
                "engine": lambda: draw_packed(with_still_vae, edits),
            },
        )


def small_edits(bench: Bench) -> None:
    edits = unlike_edits(bench.settings.sizes)
    with_stock_vae, with_still_vae = bench.model(vae="stock", **NO_CACHE), bench.model(vae="still", **NO_CACHE)
    small_areas = bench.settings.sizes.model_copy(update={"vae_area_px": bench.settings.sizes.vae_area_px // 4})
    with stock_pipeline(bench.pipeline, bench.settings.editor, small_areas) as pipeline:
        bench.compare(
            "8 small unlike edits",
            {
                "diffusers, one by one": lambda: draw_stock(pipeline, edits),
                "engine, one by one": lambda: draw_one_by_one(with_still_vae, edits),
                "engine, packed, stock VAE": lambda: draw_packed(with_stock_vae, edits),
                "engine, packed": lambda: draw_packed(with_still_vae, edits),
            },
        )


def orbit(bench: Bench) -> None:
    """Eight views of one picture, which the cache encodes once; the speed-up depends on the VAE."""
    edits = orbit_edits(bench.settings.sizes)
    for vae in ("still", "stock"):
        cached, without = bench.model(vae=vae), bench.model(vae=vae, **NO_CACHE)
        for one, other in zip(draw_packed(cached, edits), draw_packed(without, edits), strict=True):
            np.testing.assert_array_equal(one, other, "the cache changed a picture")

        def new_upload(cached: EditModel = cached) -> None:
            cached.forget()
            draw_packed(cached, edits)

        bench.compare(
            f"orbit of 8 views, {vae} VAE",
            {"without cache": partial(draw_packed, without, edits), "with cache": new_upload},
        )


@torch.inference_mode()
def still_vae(bench: Bench) -> None:
    """VAE encode and decode at four times the output area, but at most 512 x 512, with a width between the tiny and
    the real VAE's."""
    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage(base_dim=32, num_res_blocks=2).eval().requires_grad_(False)
    still = StillVae(vae).to(memory_format=torch.channels_last)
    side = fit_area(min(4 * bench.settings.sizes.output_area_px, 512**2), 1.0).width
    picture = (torch.rand(1, 3, side, side) * 2 - 1).to(memory_format=torch.channels_last)
    latents = torch.randn(1, 16, side // LATENT_PX, side // LATENT_PX)
    bench.compare(
        f"VAE encode, {side}², base_dim 32",
        {"stock": lambda: vae.encode(picture[:, :, None]).latent_dist.mode(), "still": lambda: still.encode(picture)},
    )
    bench.compare(
        f"VAE decode, {side}², base_dim 32",
        {"stock": lambda: vae.decode(latents[:, :, None]), "still": lambda: still.decode(latents)},
    )


def step_cost(bench: Bench) -> None:
    """One step of 1 to 16 small edits, packed and one by one."""
    model = bench.model(**NO_CACHE)
    edits = unlike_edits(bench.settings.sizes) * 2
    drafts = begin(model, edits)
    for number in PACK_SIZES:
        pack = drafts[:number]
        tokens = sum(edit.request.num_tokens(edit.pictures) for edit in edits[:number])
        bench.compare(
            step_section(number, tokens),
            {ONE_BY_ONE: partial(_steps, model, pack), PACKED: partial(_step, model, pack)},
        )


def peak_memory(bench: Bench) -> None:
    """The peak GPU memory of torch in this run, stock pipeline included."""
    if torch.cuda.is_available():
        bench.facts["peak memory, B"] = float(torch.cuda.max_memory_allocated())


SECTIONS = (stages, single_edit, small_edits, orbit, still_vae, step_cost, peak_memory)


def _step(model: EditModel, drafts: Sequence[Draft]) -> None:
    for draft in drafts:
        draft.index = 0
    model.step(drafts)


def _steps(model: EditModel, drafts: Sequence[Draft]) -> None:
    for draft in drafts:
        _step(model, [draft])
