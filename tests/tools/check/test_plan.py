"""The memory plan: its sizes match the real models, the shipped profiles fit their cards, others are rejected."""

import math
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from serve_app.config import AppSettings, CardSettings, EditorSettings, WeightsSource
from serve_app.editor.loading.load import load_model
from serve_app.edits.request import PreparedPicture
from serve_app.errors import ConfigError
from serve_app.tiny.checkpoint import cached_checkpoint
from serve_app.tools.check import check_file, describe
from serve_app.tools.check.host import PROCESS_BYTES, host_rows
from serve_app.tools.check.memory import (
    draft_bytes,
    rewriter_rows,
    table_bytes,
    transformer_bytes,
    vae_working_bytes,
    weight_bytes,
)
from serve_app.tools.check.plan import GB, GpuPlan, Row
from serve_app.tools.live_bytes import peak_bytes
from serve_app.weights.architectures import EditArchitecture, find_edit_model, find_rewriter
from tests.conftest import RANDOM_FILE, ROOT
from tests.fakes import edit_request

EDIT_2511 = WeightsSource(path="Qwen/Qwen-Image-Edit-2511")
GIB = 2**30
PROFILES = sorted((ROOT / "configs").glob("gpu-*.yaml"))
SAVINGS = {
    "gpu-1x24gb.yaml": ["smaller packs"],
    "gpu-1x48gb.yaml": ["quantization: int4", "text_encoder_device: cpu", "vae_tiling: true"],
    "gpu-1x80gb.yaml": ["quantization: fp8 or int4", "text_encoder_device: cpu"],
    "gpu-1x141gb.yaml": ["adaln_tables: true", "quantization: fp8 or int4", "text_encoder_device: cpu"],
    "gpu-8x80gb.yaml": ["adaln_tables: true", "quantization: fp8 or int4", "text_encoder_device: cpu"],
}


@cache
def real_model() -> EditArchitecture:
    model = find_edit_model(EDIT_2511)
    assert model is not None
    return model


def settings(card_gb: float | None = None, source: str = EDIT_2511.path, **editor: object) -> AppSettings:
    card = None if card_gb is None else {"name": "a card", "memory_gb": card_gb}
    return AppSettings.model_validate({"editor": {"base": {"path": source}, **editor}, "card": card})


def editor_settings(**editor: object) -> EditorSettings:
    return settings(**editor).editor  # type: ignore[arg-type]  # none of them is card_gb or source


def with_args(path: Path, tmp_path: Path, **args: object) -> Path:
    """A copy of the file with other settings."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["applications"][0]["args"] |= args
    changed = tmp_path / path.name
    changed.write_text(yaml.safe_dump(config), encoding="utf-8")
    return changed


# The published sizes of the weights, in GB of 10^9 bytes.


def test_parameters_are_those_of_the_real_model() -> None:
    counts = {name: parameter.numel() for name, parameter in real_model().transformer.named_parameters()}
    modulation = sum(count for name, count in counts.items() if re.search(r"\.(img|txt)_mod\.", name))
    assert sum(counts.values()) == pytest.approx(20.4e9, rel=0.03)
    assert modulation == pytest.approx(6.8e9, rel=0.03)
    assert all(parameter.is_meta for parameter in real_model().transformer.parameters())


def test_weights_take_what_the_real_ones_take() -> None:
    model = real_model()
    assert transformer_bytes(model.transformer, editor_settings()) == pytest.approx(40.9 * GB, rel=0.03)
    tabled = transformer_bytes(model.transformer, editor_settings(adaln_tables=True))
    assert tabled == pytest.approx(27.3 * GB, rel=0.03)
    assert weight_bytes(model.text_encoder, torch.bfloat16) == pytest.approx(16.6 * GB, rel=0.03)
    assert weight_bytes(model.vae, torch.bfloat16) == pytest.approx(0.25 * GB, rel=0.03)
    assert weight_bytes(model.vae, torch.float32) == 2 * weight_bytes(model.vae, torch.bfloat16)


# A block's linear layers have 36 D^2 weights: 12 of modulation, 4 of the image MLP's last layer, 20 that are quantized.
# Published figures of 20.4 GB (13.6 with tables) for fp8 count every weight with one byte; ours keep those 16 D^2 and
# the embedders in 16 bits, so that only the quantized part can be compared: 20 of 36 parts of 20.4.
@pytest.mark.parametrize(("quantization", "bytes_each"), [("fp8", 1.0), ("int4", 0.5 + 1 / 32)])
@pytest.mark.parametrize("adaln_tables", [False, True])
def test_quantization_shrinks_only_its_own_layers(quantization: str, bytes_each: float, adaln_tables: bool) -> None:
    model = real_model().transformer
    whole = transformer_bytes(model, editor_settings(adaln_tables=adaln_tables))
    small = transformer_bytes(model, editor_settings(adaln_tables=adaln_tables, quantization=quantization))
    num_quantized = 60 * 20 * 3072**2
    assert num_quantized == pytest.approx(20.4e9 * 20 / 36, rel=0.03)
    assert whole - small == num_quantized * (2 - bytes_each)


def test_tables_free_more_than_they_take() -> None:
    model = real_model().transformer
    tabled = editor_settings(adaln_tables=True)
    freed = transformer_bytes(model, editor_settings()) - transformer_bytes(model, tabled)
    assert freed == pytest.approx(13.6 * GB, rel=0.03)
    row = 60 * 2 * 6 * 3072 * 2
    assert table_bytes(model, editor_settings()) == 0
    # With a shift of 3, 1 to 16 steps have 80 different timesteps, those of 20, 28, 30, 40 and 50 steps 84 more; beside
    # them t = 0 and 128 extra rows.
    assert table_bytes(model, tabled) == (164 + 1 + 128) * row


def test_working_set_of_the_stock_vae_lies_within_what_was_measured() -> None:
    model = real_model().vae
    stock = vae_working_bytes(model, settings(vae="stock"))
    # Measured at 1024 x 1024: 4.4 to 5.3 GiB for decoding, the VAE's own weights included.
    assert 4.35 < (stock + weight_bytes(model, torch.bfloat16)) / GIB < 5.3
    assert vae_working_bytes(model, settings(vae="still")) < 0.6 * stock
    assert vae_working_bytes(model, settings(vae="stock", vae_tiling=True)) == pytest.approx(stock / 16, rel=0.01)


def test_peak_is_that_of_the_tensors_alive_at_once() -> None:
    def run() -> torch.Tensor:
        first = torch.empty(1000, dtype=torch.uint8, device="meta")
        second = first + 1  # two alive
        del first
        view = second.view(10, 100)[1:]  # a view takes nothing
        third = view.clone()  # 1000 and 900
        return third.to(torch.float32)  # and 3600

    assert peak_bytes(run) == 1000 + 900 + 3600


REWRITERS = [("2B", 2.13e9), ("4B", 4.44e9), ("8B", 8.77e9)]  # as their model cards say


@pytest.mark.parametrize(("size", "count"), REWRITERS)
def test_rewriters_have_their_published_sizes(size: str, count: float) -> None:
    model = find_rewriter(WeightsSource(path=f"Qwen/Qwen3-VL-{size}-Instruct"))
    assert model is not None
    assert weight_bytes(model, torch.bfloat16) == pytest.approx(2 * count, rel=0.01)


# Sources


def test_folder_is_known_by_its_name_and_else_by_what_lies_in_it(tmp_path: Path) -> None:
    named = find_edit_model(WeightsSource(path="/weights/Qwen-Image-Edit-2511"))
    assert named is not None
    assert named.transformer.config.num_layers == 60
    shutil.copytree(cached_checkpoint(), tmp_path / "weights", ignore=shutil.ignore_patterns("*.safetensors"))
    on_disk = find_edit_model(WeightsSource(path=str(tmp_path / "weights" / "edit")))
    tiny = find_edit_model(WeightsSource(path="tiny:edit"))
    assert on_disk is not None
    assert tiny is not None
    assert on_disk.transformer.config.num_layers == tiny.transformer.config.num_layers == 4
    assert weight_bytes(tiny.vae, torch.bfloat16) == weight_bytes(on_disk.vae, torch.bfloat16)
    assert find_rewriter(WeightsSource(path=str(tmp_path / "weights" / "rewriter"))) is not None


def test_unreadable_folder_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    assert find_rewriter(WeightsSource(path=str(tmp_path))) is None


def test_unknown_source_is_neither_refused_nor_accepted(tmp_path: Path) -> None:
    raw = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf-8"))["applications"][0]["args"]
    raw["editor"]["base"]["path"] = "someone/other-model"
    path = with_args(ROOT / "serve_config.yaml", tmp_path, editor=raw["editor"])
    rewriter, editor = sorted(check_file(path).plans[0], key=lambda plan: plan.deployment, reverse=True)
    assert (editor.fits, rewriter.fits) == (None, True)
    assert re.search(r"\n +transformer weights \(bfloat16\) +unknown\n", describe(path))
    assert "whether it fits is unknown: a part has an unknown size" in describe(path)


def test_unknown_part_does_not_save_what_is_too_large_already() -> None:
    plan = GpuPlan("Editor", (Row("a", None), Row("b", 9 * GB)), CardSettings(name="c", memory_gb=10), 0.5, ("less",))
    assert plan.fits is False
    assert plan.verdict == "does not fit by 4.0 GB"


# Files


def test_there_is_a_profile_for_each_card() -> None:
    assert {path.name for path in PROFILES} == set(SAVINGS)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_profile_fits_its_card(path: Path) -> None:
    file = check_file(path)
    (plans,) = file.plans
    assert [plan.fits for plan in plans] == [True] * (1 if file.settings[0].rewriter is None else 2)
    gb = re.search(r"x(\d+)gb", path.name)
    assert gb is not None
    assert {plan.card.memory_gb for plan in plans if plan.card} == {float(gb[1])}


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_profile_is_refused_on_half_its_card_with_what_to_do(path: Path, tmp_path: Path) -> None:
    card = check_file(path).settings[0].card
    assert card is not None
    halved = with_args(path, tmp_path, card={"name": "half a card", "memory_gb": card.memory_gb / 2})
    with pytest.raises(ConfigError) as caught:
        check_file(halved)
    (line,) = (line for line in str(caught.value).splitlines() if ": Editor needs" in line)
    assert line.startswith("applications[0].args.card: ")
    assert re.search(r"does not fit by [\d.]+ GB in its share \([\d.]+\) of half a card\. Largest: .*weights", line)
    assert all(saving in line for saving in SAVINGS[path.name])


def test_used_savings_are_not_named_again(tmp_path: Path) -> None:
    path = with_args(ROOT / "configs" / "gpu-1x24gb.yaml", tmp_path, card={"name": "small", "memory_gb": 12})
    with pytest.raises(ConfigError) as caught:
        check_file(path)
    assert not re.search("adaln_tables|quantization|text_encoder_device|vae_tiling", str(caught.value))


def test_replicas_on_one_card_do_not_take_more_than_it_has() -> None:
    for path in PROFILES:
        (plans,) = check_file(path).plans
        shares = [plan.share for plan in plans]
        assert sum(shares) <= 1 or set(shares) == {1}


def test_cluster_profile_is_the_default_file() -> None:
    assert (ROOT / "configs" / "gpu-8x80gb.yaml").read_bytes() == (ROOT / "serve_config.yaml").read_bytes()


def test_file_without_gpu_gets_no_plan() -> None:
    assert check_file(RANDOM_FILE).plans == ((),)
    assert " GB" not in describe(RANDOM_FILE)


def test_without_a_card_the_plan_has_no_limit(tmp_path: Path) -> None:
    path = with_args(ROOT / "serve_config.yaml", tmp_path, card=None)
    assert [plan.fits for plan in check_file(path).plans[0]] == [None, None]
    assert "whether it fits is unknown: args.card is not set" in describe(path)


def test_a_paused_edit_keeps_no_more_than_planned(tiny_settings: AppSettings) -> None:
    """The largest edit: four pictures at full area, guided, with a long prompt."""
    model, area = load_model(tiny_settings.editor), tiny_settings.sizes
    side, seen = math.isqrt(area.output_area_px), math.isqrt(area.condition_area_px)
    prepared = PreparedPicture(np.zeros((side, side, 3), np.uint8), np.zeros((seen, seen, 3), np.uint8))
    request = edit_request("x" * (tiny_settings.limits.max_prompt_chars // 2), side_px=side, guidance=2.0)
    (draft,) = model.begin([model.prepare(request, (prepared,) * 4)])
    model.step([draft])
    assert draft.velocity is not None
    kept = [draft.latents, draft.velocity, draft.references, *(prompt.embeds for prompt in draft.prompts)]
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    architecture = find_edit_model(tiny_settings.editor.base)
    assert architecture is not None
    planned = draft_bytes(architecture.transformer, tiny_settings)
    assert planned / 4 < sum(held.values()) <= planned


def test_the_rewriters_plan_covers_its_batch() -> None:
    def kv_cache(**rewriter: int) -> Row:
        raw = {"source": {"path": "Qwen/Qwen3-VL-8B-Instruct"}, **rewriter}
        given = AppSettings.model_validate({"editor": {"base": {"path": EDIT_2511.path}}, "rewriter": raw})
        (row,) = (row for row in rewriter_rows(given) if row.name.startswith("KV cache"))
        return row

    assert kv_cache(max_batch_tokens=20_000).name == "KV cache (20000 tokens)"
    # Keys and values of 36 layers with 8 heads of 128 in 16 bits.
    assert kv_cache(max_batch_tokens=20_000).num_bytes == 20_000 * 2 * 36 * 8 * 128 * 2
    alone = kv_cache(max_batch_size=1)
    assert kv_cache(max_batch_tokens=1) == alone != kv_cache()


def test_table_is_printed_with_figures_under_each_other() -> None:
    lines = describe(ROOT / "configs" / "gpu-1x80gb.yaml").splitlines()
    start = lines.index("  Editor on NVIDIA H100 80 GB, memory of one replica:")
    end = lines.index("  Rewriter on NVIDIA H100 80 GB, memory of one replica:")
    *rows, verdict = lines[start + 1 : end]
    assert re.fullmatch(r"    fits, with [\d.]+ GB to spare", verdict)
    assert [re.sub(r" {2,}[\d.]+ GB$", "", row).strip() for row in rows] == [
        "transformer weights (bfloat16, no modulation)",
        "AdaLN tables",
        "text encoder weights",
        "VAE weights",
        "VAE working set (1.05 Mpx, still)",
        "activations (50528 tokens)",
        "paused edits (16)",
        "caches",
        "CUDA context and slack",
        "sum",
        "share of the card (0.8)",
    ]
    assert rows[0] == "    transformer weights (bfloat16, no modulation)  27.3 GB"
    assert rows[-1].endswith(" 64.0 GB")
    assert len({len(row) for row in rows}) == 1


def test_host_memory_is_printed_after_the_plans() -> None:
    """On the smallest card, where the most stays on the host."""
    lines = describe(ROOT / "configs" / "gpu-1x24gb.yaml").splitlines()
    start = lines.index("  Editor, host memory of one replica:")
    assert lines[start + 1 :] == [
        "    process (estimated)    4.0 GB",
        "    text encoder weights  16.6 GB",
        "    while loading          0.2 GB",
        "    sum                   20.8 GB",
    ]


def test_host_memory_of_an_unknown_model_is_unknown(tmp_path: Path) -> None:
    rows = host_rows(settings(source=str(tmp_path), adaln_tables=True, text_encoder_device="cpu"))
    assert [row.num_bytes for row in rows] == [PROCESS_BYTES, None, None]


def test_what_leaves_the_host_is_not_planned_there() -> None:
    names = [row.name for row in host_rows(settings())]
    assert names == ["process (estimated)", "while loading"]
