"""Computed rooflines: what is counted, how kernels fuse, and what is printed."""

from collections.abc import Sequence
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from serve_app.cli import main
from serve_app.config import AppSettings, WeightsSource
from serve_app.editor.model.layout import SpanShape
from serve_app.tools.bench.cards import CARDS
from serve_app.tools.bench.counting import Recorder
from serve_app.tools.bench.fake_card import Trace
from serve_app.tools.bench.floor import step_flops
from serve_app.tools.bench.fusion import Kernel, Levers, kernels
from serve_app.tools.bench.paper import GRID, TEXT_TOKENS, StepTrace, count_step, other_stages, step_rows
from serve_app.tools.bench.paper_report import stage_table
from serve_app.tools.bench.run import measured_stages
from serve_app.weights.architectures import EditArchitecture, find_edit_model
from tests.conftest import RANDOM_FILE

ROWS, WIDTH, OUT = 64, 32, 16
BF16 = 2


@cache
def model() -> EditArchitecture:
    found = find_edit_model(WeightsSource(path="Qwen/Qwen-Image-Edit-2511"))
    assert found is not None
    return found


@cache
def step(num_references: int) -> StepTrace:
    return count_step(model().transformer, num_references)


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta", dtype=torch.bfloat16)


# Counting


@pytest.mark.parametrize(("num_references", "tflop"), [(1, 168.6), (3, 451.3)])
def test_counted_operations_of_a_step_are_those_of_the_formula(num_references: int, tflop: float) -> None:
    counted = step(num_references).cost(CARDS["h200"], Levers(), "cuDNN").flops
    shape = SpanShape(GRID, (GRID,) * num_references, TEXT_TOKENS[num_references])
    # The formula leaves modulation out, which takes a few rows.
    assert step_flops(model().transformer, [shape]) == pytest.approx(counted, rel=0.001)
    assert counted / 1e12 == pytest.approx(tflop, rel=0.001)


def test_an_operation_counts_what_it_reads_and_writes() -> None:
    x, table, rows = meta(ROWS, WIDTH), meta(3, WIDTH), torch.zeros(ROWS, dtype=torch.long, device="meta")
    with Recorder() as recorder:
        y = x.view(-1, 1, WIDTH)[1:] * 2  # views are no operations
        y.copy_(x[1:, None])
        table[rows]  # reads the table once, however often its rows are needed
        x + table[:1]  # so is what is broadcast
    names, sizes = zip(*((op.name, op.num_bytes) for op in recorder.ops), strict=True)
    row, index = WIDTH * BF16, 8 * ROWS
    assert names == ("mul", "copy_", "index", "add")
    assert sizes == (2 * 63 * row, 2 * 63 * row, (3 + ROWS) * row + index, (1 + 2 * ROWS) * row)


# Fusion


def traced() -> Trace:
    """A compiled call: elementwise operations, a linear layer, GELU and a residual, then one outside of it."""
    x, weight, bias = meta(ROWS, WIDTH), meta(WIDTH, WIDTH), meta(WIDTH)

    def layer(x: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.linear(x * 2 + 1, weight, bias)
        return torch.nn.functional.gelu(hidden) + x

    with Recorder() as recorder:
        recorder.compiled(layer)(x) * 3
        quantizable = frozenset({recorder.number(weight)})
    return Trace(tuple(recorder.ops), frozenset(recorder.kept), quantizable)


def elementwise(launched: Sequence[Kernel]) -> list[float]:
    return sorted(kernel.num_bytes for kernel in launched if kernel.kind == "elementwise")


def test_eager_execution_reads_and_writes_at_each_operation() -> None:
    size = ROWS * WIDTH * BF16
    assert elementwise(kernels(traced(), Levers())) == [2 * size] * 4 + [3 * size]


def test_compiled_kernels_touch_memory_only_at_their_ends() -> None:
    size = ROWS * WIDTH * BF16
    launched = kernels(traced(), Levers(compiled=True))
    # x * 2 + 1; the multiplication outside; GELU and the residual, which read two tensors.
    assert elementwise(launched) == [2 * size, 2 * size, 3 * size]
    assert [kernel.flops for kernel in launched if kernel.kind == "matmul"] == [2 * ROWS * WIDTH * WIDTH]


def test_gelu_as_an_epilogue_is_applied_by_the_linear_layer() -> None:
    size = ROWS * WIDTH * BF16
    assert elementwise(kernels(traced(), Levers(gelu_epilogue=True))) == [2 * size] * 3 + [3 * size]


def test_quantizing_fuses_with_what_computes_the_input() -> None:
    size = ROWS * WIDTH * BF16
    launched = kernels(traced(), Levers(compiled=True, fp8=True))
    assert elementwise(launched) == [1.5 * size, 2 * size, 3 * size]
    (product,) = (kernel for kernel in launched if kernel.kind == "matmul")
    assert product.fp8
    assert product.num_bytes == ROWS * WIDTH + WIDTH * WIDTH + WIDTH * BF16 + size


# The real step


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("num_references", [1, 3])
@pytest.mark.parametrize("card", CARDS)
def test_no_lever_costs_time(card: str, num_references: int, fp8: bool) -> None:
    rows = step_rows(step(num_references), CARDS[card], fp8=fp8)
    assert [row.name for row in rows if row.saved_s < -1e-9] == []
    assert all(row.cost.over_floor > 1 for row in rows)
    assert rows[-1].cost.computed_s < rows[0].cost.computed_s


@pytest.mark.parametrize("num_references", [1, 3])
@pytest.mark.parametrize("card", ["h100", "h200"])
def test_the_compiled_step_is_near_its_floor(card: str, num_references: int) -> None:
    """Of the rows with what is built; the last one has more."""
    rows = {row.name: row.cost.over_floor for row in step_rows(step(num_references), CARDS[card], fp8=False)}
    assert rows["+ FlashAttention 3"] <= 1.2
    assert rows["+ AdaLN tables"] <= (1.22 if (card, num_references) == ("h100", 3) else 1.2)


def test_blocks_add_up() -> None:
    """A step of 60 blocks costs what 59 more blocks than one cost."""
    one, two, all_blocks = (
        StepTrace(step(1).one, step(1).two, num_layers).cost(CARDS["h100"], Levers(), "cuDNN")
        for num_layers in (1, 2, 60)
    )
    assert all_blocks.computed_s == pytest.approx(one.computed_s + 59 * (two.computed_s - one.computed_s))
    assert all_blocks.num_kernels > 59 * (two.num_kernels - one.num_kernels)


# What is printed


def test_the_command_prints_computed_figures_for_each_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "engine", "--paper", "--card", "h100"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].startswith("NVIDIA H100 SXM 80 GB: COMPUTED")
    titles = [line for line in lines if "megapixel" in line]
    assert len(titles) == 6
    assert all("(computed" in title for title in titles)
    for num_references in ("1 reference ", "3 references "):
        assert sum(num_references in title for title in titles) == 3
    first_words = [line.strip().split("  ")[0] for line in lines]
    for stage in ("VAE encode", "text encoder", "step, bf16, compiled", "VAE decode"):
        assert first_words.count(stage) == 2
    levers = {"compiled, FlashAttention 2": 4, "+ GELU as epilogue": 2, "+ AdaLN tables": 4, "+ FlashAttention 3": 4}
    assert {lever: first_words.count(lever) for lever in levers} == levers
    assert "measured on an H200" in printed  # a rate's source


def test_measured_stages_stand_beside_the_computed_ones(tiny_settings: AppSettings) -> None:
    """On the CPU: a card is no different here."""
    small = tiny_settings.sizes.model_copy(update={"output_area_px": 64**2, "vae_area_px": 64**2})
    measured_s = measured_stages(tiny_settings.model_copy(update={"sizes": small}), rounds=1)
    stages = other_stages(model(), CARDS["h200"], 1)
    assert stages.keys() <= measured_s.keys()
    assert "step, bf16, eager" in measured_s
    file = StringIO()
    console = Console(file=file, width=120)
    console.print(stage_table("a picture", stages, measured_s))
    printed = file.getvalue()
    assert "measured" in printed
    assert f"{measured_s['VAE decode'] * 1000:.1f}" in printed


def test_an_unknown_architecture_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "other.yaml"
    config.write_text(RANDOM_FILE.read_text().replace("tiny:edit", "someone/other"))
    assert main(["bench", "engine", "--paper", "--config", str(config)]) == 1
    assert "someone/other is not an architecture" in capsys.readouterr().err
