"""The simulation against what can be computed by hand: one editor, several, a queue, a cache, the autoscaler."""

import math
from itertools import islice, repeat

import pytest

from serve_app.config import SizeSettings
from serve_app.tools.load.load import arrival_times
from serve_app.tools.load.mix import EditKind, edits_of
from serve_app.tools.load.report import quantile
from serve_app.tools.plan.cell import Load, Simulated, simulate
from serve_app.tools.plan.costs import Costs
from serve_app.tools.plan.setup import Autoscaling, Setup

SMALL = EditKind(size="64x64")
TOKENS = 2 * 16  # output and reference
COSTS = Costs("test", 0.1, 0.01, 0.0, 0.5 / 16, 0.2, 0.3 / 16)
ALONE_S = 0.2 + 0.5 + 4 * (0.1 + 0.01 * TOKENS) + 0.3
SETUP = Setup(
    sizes=SizeSettings(output_area_px=4096, vae_area_px=4096, condition_area_px=4096),
    max_pack_tokens=TOKENS,
    max_paused_edits=16,
    scheduling="arrival",
    routing="picture",
    max_ongoing_requests=64,
    autoscaling=None,
)


def run(num: int, times: list[float], setup: Setup = SETUP, kind: EditKind = SMALL, num_editors: int = 1) -> Simulated:
    load = Load(edits_of((kind,), 0), math.inf, iter(times[:num]))
    return simulate(setup, COSTS, num_editors, load)


def latencies(found: Simulated) -> list[float]:
    return [outcome.elapsed_s for outcome in sorted(found.outcomes, key=lambda outcome: outcome.due_s)]


def changed(**update: object) -> Setup:
    return Setup(**{**vars(SETUP), **update})


def test_an_edit_that_is_alone_takes_the_sum_of_its_costs() -> None:
    found = simulate(SETUP, COSTS, 1, Load(edits_of((SMALL,), 0), math.inf, iter([3.0])), outside_s=0.25)
    assert latencies(found) == [pytest.approx(ALONE_S + 0.25)]


def test_guidance_doubles_tokens_and_prompts() -> None:
    found = run(1, [0.0], kind=SMALL.model_copy(update={"true_cfg_scale": 4.0}))
    assert latencies(found) == [pytest.approx(ALONE_S + 0.2 + 4 * 0.01 * TOKENS)]


def test_edits_that_do_not_share_steps_wait_for_each_other() -> None:
    found = run(3, [0.0, 0.0, 0.0])
    assert latencies(found) == [pytest.approx(number * ALONE_S) for number in (1, 2, 3)]


def test_edits_in_one_pack_share_the_fixed_part_of_a_step() -> None:
    found = run(2, [0.0, 0.0], changed(max_pack_tokens=2 * TOKENS))
    # The first one comes alone; the second one joins it at its second step.
    alone_s, joined_s = 0.1 + 0.01 * TOKENS, 0.1 + 2 * 0.01 * TOKENS
    first_s = 0.7 + alone_s + 0.7 + 3 * joined_s + 0.3
    assert latencies(found) == [pytest.approx(first_s), pytest.approx(first_s + alone_s + 0.3)]


def test_the_scheduler_is_the_engines() -> None:
    """A short edit overtakes a long one that has begun, with `shortest` only."""
    mix = (SMALL.model_copy(update={"num_inference_steps": 40}), SMALL)
    found = {}
    for scheduling in ("shortest", "arrival"):
        edits = edits_of(mix, 0)
        long, short = (next(edit for edit in edits if edit.kind is kind) for kind in mix)
        load = Load(iter([long, short]), math.inf, iter([0.0, 1.0]))
        found[scheduling] = latencies(simulate(changed(scheduling=scheduling), COSTS, 1, load))
    assert found["shortest"][1] < found["shortest"][0]
    assert found["arrival"][1] > found["shortest"][1] + 10


def test_editors_share_the_edits() -> None:
    found = run(16, [0.0] * 16, num_editors=4)
    assert sum(found.num_served) == 16
    assert max(found.num_served) <= 5  # a quarter above the mean
    assert max(latencies(found)) == pytest.approx(max(found.num_served) * ALONE_S)


@pytest.mark.parametrize(("routing", "least", "most"), [("picture", 7 / 8, 7 / 8), ("balanced", 0.5, 0.75)])
def test_views_find_their_picture_encoded_where_it_was(routing: str, least: float, most: float) -> None:
    views = SMALL.model_copy(update={"views": 8})
    found = run(80, list(islice(arrival_times(0.3, 0), 80)), changed(routing=routing), views, num_editors=3)
    assert least <= found.hit_rate <= most


def test_what_no_editor_accepts_waits_in_its_order() -> None:
    found = run(3, [0.0, 0.0, 0.0], changed(max_ongoing_requests=1))
    assert latencies(found) == [pytest.approx(number * ALONE_S) for number in (1, 2, 3)]


def test_a_closed_loop_has_one_edit_per_client() -> None:
    load = Load(edits_of((SMALL,), 0), 10 * ALONE_S, None, num_clients=2)
    found = simulate(SETUP, COSTS, 1, load)
    assert len(found.outcomes) == 11  # one after another, and the last one came before the end
    assert latencies(found)[2:] == [pytest.approx(2 * ALONE_S)] * 9


def test_a_queue_with_random_arrivals_waits_as_theory_says() -> None:
    """The mean wait of a queue with one server, Poisson arrivals and equal service times (Pollaczek and Khinchine)."""
    load, num = 0.7, 8000
    found = run(num, list(islice(arrival_times(load / ALONE_S, 1), num)))
    waits = [took_s - ALONE_S for took_s in latencies(found)]
    assert sum(waits) / num == pytest.approx(load / (2 * (1 - load)) * ALONE_S, rel=0.1)


SCALING = Autoscaling(1, 4, 2.0, upscale_delay_s=10.0, downscale_delay_s=60.0, start_s=30.0)


def test_the_autoscaler_adds_editors_after_its_delay_and_their_start() -> None:
    times = list(islice(arrival_times(2 / ALONE_S, 0), 400))
    fixed = run(400, times, num_editors=1)
    load = Load(edits_of((SMALL,), 0), math.inf, iter(times))
    scaled = simulate(changed(autoscaling=SCALING), COSTS, 1, load, scales=True)
    assert len(scaled.num_served) > 1
    assert quantile(latencies(scaled), 0.95) < quantile(latencies(fixed), 0.95) / 2
    early = [[outcome for outcome in found.outcomes if outcome.ended_s < 40.0] for found in (fixed, scaled)]
    assert early[0] == early[1]


def test_the_autoscaler_removes_idle_editors_which_finish_their_edits() -> None:
    load = Load(edits_of((SMALL,), 0), math.inf, iter([*repeat(0.0, 8), 400.0]))
    scaled = simulate(changed(autoscaling=SCALING), COSTS, 4, load, scales=True)
    assert len(scaled.outcomes) == 9
    assert scaled.editor_s < 4 * 400.0 * 0.6
    never = simulate(changed(autoscaling=SCALING), COSTS, 4, Load(edits_of((SMALL,), 0), math.inf, iter([0.0])))
    assert len(never.num_served) == 4
