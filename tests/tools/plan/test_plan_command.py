"""Costs from both kinds of results, the arithmetic of fleets, and the command."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.cli import main
from serve_app.config import CONFIGS
from serve_app.errors import UsageError
from serve_app.tools.load.mix import EditKind
from serve_app.tools.plan.costs import Costs, measured_costs, read_costs
from serve_app.tools.plan.fleet import Assumptions, Fleet, cell_capacity, engine_s, plan_fleet, redis_bytes
from serve_app.tools.plan.setup import read_setup
from tests.conftest import ROOT

RESULTS = ROOT / "tests" / "benchmarks" / "results"
H100, MEASURED = RESULTS / "paper-h100.txt", RESULTS / "cpu-2-cores.json"
SETTINGS, SETUP = read_setup(CONFIGS / "gpu-8x80gb.yaml")
ASSUMED = Assumptions(load=0.5, cpu_s=0.6, rewrites_per_s=4.0, gpu_price=2.0, core_price=0.0, gib_price=0.0)
COSTS = Costs("test", 0.0, 1e-5, 0.0, 0.0, 0.1, 0.0)
MEGAPIXEL = EditKind()
EDIT_S = 0.1 + 4 * 8192e-5


def bench_json(**times: float) -> dict[str, Any]:
    """Results of `bench engine`: a step has 1 ms and 10 µs for each token."""
    stages = {"text encoder": 0.002, "VAE encode": 0.006, "VAE decode": 0.012, "step": 0.001 + 512e-5} | times
    rows = [{"section": "stages of one edit", "name": name, "median_s": value} for name, value in stages.items()]
    for number, tokens in ((1, 100), (4, 400), (16, 1600)):
        section = f"step of {number} edits, {tokens} picture tokens"
        rows.append({"section": section, "name": "packed", "median_s": 0.001 + tokens * 1e-5})
        rows.append({"section": section, "name": "one by one", "median_s": 1.0})
    return {"device": "x86_64 CPU", "config": "x.yaml", "rows": rows, "facts": {}}


def test_measured_costs_are_a_line_through_the_packed_steps() -> None:
    costs = measured_costs(bench_json())
    assert costs.step([512]) == pytest.approx(0.001 + 512e-5)
    assert costs.step([100, 300]) == pytest.approx(0.001 + 400e-5)
    assert 256 * costs.encode_token_s == pytest.approx(0.006)
    assert 256 * costs.decode_token_s == pytest.approx(0.012)
    assert costs.text_s == 0.002


PAPER = """CARD X: COMPUTED from counted operations and the rates below, not measured.
Stages, 1 megapixel, 1 reference (computed; compiled steps with attention by cuDNN, all else eager)

 stage                  floor   matmuls   attention   elementwise       GB   kernels   computed   x floor
 ────────────────────────────────────────────────────────────────────────────────────────────────────────
 VAE encode               3.6       3.2         1.1           9.3    26.43       198       13.6      3.78
 text encoder             7.4       7.3         0.2           4.7    13.28      3327       12.2      1.65
 step, bf16, eager      213.4     151.2       143.7         128.4   365.68      6640      423.3      1.98
 step, bf16, compiled   213.4     151.2        88.6          26.0    73.93      1720      265.8      1.25
 step, fp8, compiled    163.9     101.7        88.6          27.5    78.41      1840      217.8      1.33
 VAE decode               6.0       5.5         1.1          16.4    46.56       273       23.0      3.86

One step, bf16, 1 megapixel, 1 reference (computed; each row adds a lever)
 eager, FlashAttention 2      213.4     151.2       143.7         128.4       6.09      6640      423.3      1.98
Stages, 1 megapixel, 3 references (computed; compiled steps with attention by cuDNN, all else eager)

 VAE encode              10.8       9.6         3.3          27.9    79.29       594       40.8      3.78
 text encoder            14.0      13.8         0.4           8.0    22.60      3327       22.2      1.59
 step, bf16, compiled   571.2     308.2       308.0          50.0   142.00      1720      666.2      1.17
 step, fp8, compiled    472.0     207.3       308.0          52.0   148.00      1840      567.3      1.20
 VAE decode               6.0       5.5         1.1          16.4    46.56       273       23.0      3.86
"""


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    file = tmp_path / "paper.txt"
    file.write_text(PAPER)
    return file


def test_the_measured_edits_tokens_are_taken_where_they_are_known() -> None:
    costs = measured_costs({**bench_json(step=0.0001), "facts": {"picture tokens of one edit": 1024.0}})
    assert 512 * costs.encode_token_s == pytest.approx(0.006)
    assert 512 * costs.decode_token_s == pytest.approx(0.012)
    # A single step that was measured too fast makes no token dear.
    assert 50 * measured_costs(bench_json(step=0.0001)).encode_token_s == pytest.approx(0.006)


def test_computed_costs_are_the_tables(paper: Path) -> None:
    costs = read_costs(paper, "bf16, compiled")
    assert costs.source == "computed, CARD X, bf16, compiled"
    assert [costs.step([tokens]) for tokens in (8192, 16384)] == [pytest.approx(0.2658), pytest.approx(0.6662)]
    assert 4096 * costs.encode_token_s == pytest.approx(0.0136)
    assert 4096 * costs.decode_token_s == pytest.approx(0.023)
    assert costs.text_s == pytest.approx(0.0122)
    assert read_costs(paper, "fp8, compiled").step([8192]) == pytest.approx(0.2178)


def test_measured_stages_beside_computed_ones_are_taken(paper: Path) -> None:
    lines = [f"{line}   300.5" if "step, bf16, compiled" in line else line for line in PAPER.splitlines()]
    paper.write_text("\n".join(lines))
    assert read_costs(paper, "bf16, compiled").step([8192]) == pytest.approx(0.3005)


@pytest.mark.parametrize("file", [H100, RESULTS / "paper-h200.txt", MEASURED], ids=lambda file: file.name)
def test_the_committed_results_are_costs(file: Path) -> None:
    costs = read_costs(file, "bf16, compiled")
    assert 0 < costs.step([4096]) < costs.step([4096, 4096]) <= 2 * costs.step([4096])
    assert min(costs.encode_token_s, costs.decode_token_s, costs.text_s) > 0


@pytest.mark.parametrize("text", ["{}", "[1]", "nothing", '{"rows": []}'])
def test_other_files_hold_no_costs(tmp_path: Path, text: str) -> None:
    file = tmp_path / "costs"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"costs holds no stages of camera-edit bench engine"):
        read_costs(file, "bf16, compiled")


def test_costs_can_be_stretched() -> None:
    assert COSTS.times(2.0) == replace(COSTS, step_token_s=2e-5, text_s=0.2)


def test_an_edits_time_is_its_share_of_full_steps() -> None:
    assert engine_s(MEGAPIXEL, SETUP, COSTS) == pytest.approx(EDIT_S)
    small = EditKind(size="256x256", reference_size="256x256")
    fixed = replace(COSTS, step_s=1.0)
    # References have the configured area, whatever was sent: 4096 tokens, and 256 of the output; two fit into 9216.
    assert engine_s(small, SETUP, fixed) == pytest.approx(0.1 + 4 * (0.5 + 4352e-5))
    views = EditKind(views=8)
    encoding = replace(COSTS, encode_token_s=1 / 4096)
    assert engine_s(views, replace(SETUP, routing="picture"), encoding) == pytest.approx(EDIT_S + 1 / 8)
    assert engine_s(views, replace(SETUP, routing="balanced"), encoding) == pytest.approx(EDIT_S + 1)


def test_a_guided_edits_two_sequences_do_not_attend_to_each_other() -> None:
    costs = replace(COSTS, step_token_s=0.0, step_square_s=1e-9)
    plain, guided = (engine_s(EditKind(true_cfg_scale=scale), SETUP, costs) for scale in (1.0, 4.0))
    assert guided == pytest.approx(2 * plain)


def test_a_serve_file_may_leave_autoscaling_to_serves_defaults(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    text = (CONFIGS / "gpu-8x80gb.yaml").read_text(encoding="utf-8")
    file.write_text(re.sub(r"\n +(up|down)scale_delay_s:.*", "", text))
    autoscaling = read_setup(file)[1].autoscaling
    assert autoscaling is not None
    assert (autoscaling.upscale_delay_s, autoscaling.downscale_delay_s) == (30.0, 600.0)


def test_cells_are_nearly_equal_and_at_most_32() -> None:
    fleets = [plan_fleet(gpus, (MEGAPIXEL,), SETUP, SETTINGS, COSTS, ASSUMED) for gpus in (1, 32, 33, 1000)]
    assert [(fleet.cells, fleet.cell_gpus) for fleet in fleets] == [(1, 1), (1, 32), (2, 17), (32, 32)]
    assert [(fleet.editors, fleet.rewriters) for fleet in fleets] == [(1, 0), (32, 0), (33, 0), (1000, 0)]


def test_a_fleets_rate_ingresses_and_price() -> None:
    fleet = plan_fleet(10, (MEGAPIXEL,), SETUP, SETTINGS, COSTS, ASSUMED)
    rate = 0.5 * 10 / EDIT_S
    assert fleet.pictures_per_s == pytest.approx(rate)
    assert fleet.ingresses == 6  # 11.7 pictures per second, 0.6 s of CPU time each, 1.2 usable cores an ingress
    assert fleet.price_per_1000 == pytest.approx(1000 * 20.0 / (3600 * rate))


def test_rewriters_take_gpus_until_both_are_as_fast() -> None:
    rewritten = (EditKind(rewrite_prompt=True),)
    fleet = plan_fleet(8, rewritten, SETUP, SETTINGS, COSTS, ASSUMED)
    assert isinstance(fleet, Fleet)
    assert (fleet.editors, fleet.rewriters) == (5, 3)
    assert cell_capacity(5, 3, rewritten, SETUP, COSTS, ASSUMED) == pytest.approx(5 / EDIT_S)
    shared = plan_fleet(1, rewritten, SETUP, SETTINGS, COSTS, ASSUMED)
    assert (shared.editors, shared.rewriters) == (1, 0)
    assert shared.pictures_per_s == pytest.approx(0.5 / (EDIT_S + 0.25))


def test_redis_holds_the_queue_and_the_results() -> None:
    def gib(**kind: Any) -> float:
        return redis_bytes(1.0, (EditKind(**kind),), SETUP, SETTINGS.jobs) / 2**30

    places = SETTINGS.jobs.max_active_jobs + SETTINGS.jobs.max_queued_jobs
    queue, results = places * 3.4 * 2**20, SETTINGS.jobs.async_retention_s * 1.5 * 2**20
    assert gib() == pytest.approx(1.25 * (queue + results) / 2**30)
    assert gib(references=3) == pytest.approx(1.25 * (3 * queue + results) / 2**30)
    assert gib(size="512x512") == pytest.approx(1.25 * (queue + results / 4) / 2**30)


def test_the_plan_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mix = tmp_path / "mix.json"
    mix.write_text('[{"views": 8, "rewrite_prompt": true}]')
    config = tmp_path / "two.yaml"  # fewer editors to simulate
    config.write_text((CONFIGS / "gpu-8x80gb.yaml").read_text().replace("max_replicas: 7", "max_replicas: 2"))
    options = ["--mix", str(mix), "--config", str(config), "--edits", "60", "--rewrites", "4"]
    assert main(["plan", "--costs", str(H100), *options, "--gpus", "1", "--gpus", "3"]) == 0
    text = capsys.readouterr().out
    assert "computed, NVIDIA H100" in text
    assert "1,000 cost" in text
    assert "Autoscaled from the fewest editors" in text


def test_the_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--gpus", "2", "--edits", "60", "--config", str(CONFIGS / "random-cpu.yaml"), "--json"]
    assert main(["plan", "--costs", str(MEASURED), *options]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [fleet["editors"] for fleet in plan["fleets"]] == [2]
    assert [each["load"] for each in plan["latencies"]] == [0.5, 0.7, 0.85]
    assert plan["latencies"][0]["p95_s"] > plan["latencies"][0]["p50_s"] > 0
    assert plan["autoscaling"] is None


@pytest.mark.parametrize(
    "wrong",
    ["--gpus 0", "--load 1", "--edits 0", "--rewrites 0", "--outside nan", "--cpu inf", "--gpu-price -1"],
)
def test_impossible_plans_are_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--costs", str(H100), *wrong.split()])
    assert ended.value.code == 2
    assert wrong.split()[0] in capsys.readouterr().err


def test_a_step_without_costs_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--costs", str(H100), "--step", "fp4, compiled"]) == 2
    assert capsys.readouterr().err


def test_a_rewriter_that_is_not_known_needs_its_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mix = tmp_path / "mix.json"
    mix.write_text('[{"rewrite_prompt": true}]')
    config = str(CONFIGS / "gpu-1x48gb.yaml")
    assert main(["plan", "--costs", str(H100), "--mix", str(mix), "--config", config, "--gpus", "1"]) == 2
    assert "Set --rewrites." in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--config", "--mix"])
def test_a_yaml_error_is_located_by_the_files_name(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("- [")
    assert main(["plan", "--costs", str(H100), option, str(file), "--gpus", "1"]) != 0
    assert f'in "{file}", line 1' in capsys.readouterr().err
