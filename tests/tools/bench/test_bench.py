"""The benchmark's arithmetic, and one short run of it as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from PIL import Image

from serve_app.editor.model.layout import SpanShape
from serve_app.tools.bench.engine import Result, Row
from serve_app.tools.bench.floor import counted_flops, step_flops
from serve_app.tools.bench.report import plot_step_cost, step_points
from serve_app.tools.bench.timing import in_turns
from tests.conftest import RANDOM_FILE, ROOT

MEGAPIXEL = (64, 64)


@pytest.mark.parametrize(("num_references", "num_text", "tflop"), [(1, 300, 168.6), (2, 500, 294.4), (3, 800, 451.2)])
def test_the_flop_count_follows_from_the_configuration(num_references: int, num_text: int, tflop: float) -> None:
    """Known values of a step at one megapixel, which count each token as if it passed all layers."""
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel(zero_cond_t=True)
    flops = step_flops(transformer, [SpanShape(MEGAPIXEL, (MEGAPIXEL,) * num_references, num_text)])
    assert flops / 1e12 == pytest.approx(tflop, rel=0.01)


def test_a_stages_arithmetic_is_counted_while_it_runs() -> None:
    convolution = torch.nn.Conv2d(3, 5, 3, padding=1)
    picture = torch.zeros(1, 3, 8, 16)
    assert counted_flops(lambda: convolution(picture)) == 2 * (3 * 3 * 3) * 5 * 8 * 16


def test_contenders_run_in_turns() -> None:
    ran: list[str] = []
    runs: list[None] = []
    timings = in_turns({name: lambda name=name: ran.append(name) for name in "ab"}, 3, lambda: runs.append(None))  # type: ignore[misc]
    assert ran == ["a", "b"] * 4  # the first turn warms up
    assert len(runs) == 8
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 3, "b": 3}


def test_the_plot_shows_both_lines() -> None:
    rows = [
        Row(f"step of {number} edits, {120 * number} picture tokens", name, number * cost, None)
        for number in (1, 2, 4)
        for name, cost in (("one by one", 0.006), ("packed", 0.004))
    ]
    result = Result("x.yaml", 1, tuple(rows), {})
    assert step_points(result)["packed"] == [(120, 4.0), (240, 8.0), (480, 16.0)]
    colours = plot_step_cost(result).getcolors(2**16)
    assert colours is not None
    assert {(192, 74, 58), (47, 109, 181)} <= {colour for _, colour in colours}


def test_the_command_measures_without_ray(tmp_path: Path) -> None:
    """One round with small pictures; Ray is made impossible to import."""
    config = tmp_path / "tiny.yaml"
    config.write_text(RANDOM_FILE.read_text().replace("area_px: 65536", "area_px: 4096"))
    code = "import sys; sys.modules['ray'] = None; from serve_app.cli import main; sys.exit(main())"
    command = [sys.executable, "-W", "ignore", "-c", code, "bench", "engine", "--rounds", "1"]
    files = ["--config", str(config), "--json", str(tmp_path / "figures.json"), "--plot", str(tmp_path / "steps.png")]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    medians = {(row["section"], row["name"]): row["median_s"] for row in figures["rows"]}
    # Which one is faster is for benchmarks to say: here other work may run beside them.
    assert {("one edit", "engine"), ("one edit", "diffusers")} <= medians.keys()
    assert all(median > 0 for median in medians.values())
    step = next(row for row in figures["rows"] if row["name"] == "step")
    assert step["floor_fraction"] > 0
    assert figures["facts"]["picture tokens of one edit"] == 32  # 64 x 64 pixels, and a reference of that size
    assert figures["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "8 small unlike edits" in done.stdout
    with Image.open(tmp_path / "steps.png") as plot:
        assert plot.size == (960, 600)
