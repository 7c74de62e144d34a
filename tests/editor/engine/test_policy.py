"""What the order of steps does to the times of edits, by simulation: each step runs one edit and takes 50 ms."""

import pytest

from serve_app.editor.engine.scheduler import AGEING
from tests.editor.engine.harness import TOKENS_OF_64_PX
from tests.editor.engine.simulation import (
    STEP_S,
    Arrival,
    Outcome,
    arrivals,
    feasible_rate,
    mean,
    share,
    simulate,
    with_deadlines,
)

MEAN_S = (7 * 4 + 40) / 8 * STEP_S
"""Of the steps of an edit of `arrivals`."""


def times(outcomes: list[Outcome], num_steps: int | None = None) -> list[float]:
    return [each.simulated_s for each in outcomes if num_steps in (None, each.arrival.num_steps)]


@pytest.mark.parametrize("seed", range(3))
def test_short_edits_gain_what_an_m_g_1_queue_predicts(seed: int) -> None:
    load = arrivals(800, 0.7 / MEAN_S, seed)
    shortest, arrival = simulate(load, "shortest"), simulate(load, "arrival")
    assert share(times(shortest, 4), 0.95) <= 0.4 * share(times(arrival, 4), 0.95)
    assert mean(times(shortest)) <= 0.6 * mean(times(arrival))
    assert mean(times(shortest, 40)) <= 1.6 * mean(times(arrival, 40))


@pytest.mark.parametrize(("seed", "load"), [(0, 0.7), (1, 0.95), (2, 1.2)])
def test_no_edit_is_overtaken_by_one_that_comes_too_late(seed: int, load: float) -> None:
    outcomes = simulate(arrivals(300, load / MEAN_S, seed), "shortest")
    num_overtaken = 0
    for slow in outcomes:
        bound = slow.arrived_at + slow.work / AGEING
        later = [each for each in outcomes if each.arrived_at > slow.arrived_at]
        overtakers = [each for each in later if each.ran_at[0] < slow.ran_at[-1]]
        num_overtaken += bool(overtakers)
        assert all(each.arrived_at <= bound for each in overtakers)
    assert num_overtaken > 10


@pytest.mark.parametrize("seed", range(5))
def test_deadlines_are_met_at_four_fifths_of_the_feasible_rate(seed: int) -> None:
    load = with_deadlines(arrivals(64, 0.8 * feasible_rate(64, seed), seed), seed)
    met = [each.simulated_s <= (each.arrival.timeout_s or 0) for each in simulate(load, "shortest")]
    assert sum(met) >= 0.95 * len(met)


def test_a_client_with_one_edit_at_a_time_is_served_beside_one_with_many() -> None:
    load = [Arrival(0.0, 4, client="many") for _ in range(64)]
    for _ in range(12):
        done_at = max((each.arrival.at + each.simulated_s for each in of_client("one", load)), default=0.0)
        load.append(Arrival(done_at + 0.01, 4, client="one"))
    assert max(each.simulated_s for each in of_client("one", load)) <= 2.5 * 4 * STEP_S


def of_client(client: str, load: list[Arrival]) -> list[Outcome]:
    return [each for each in simulate(load, "shortest") if each.arrival.client == client]


def test_a_full_pack_is_shared_by_the_shortest_edits() -> None:
    outcomes = simulate([Arrival(0.0, steps) for steps in (9, 3, 5, 2)], "shortest", pack=2)
    assert [each.simulated_s for each in outcomes] == pytest.approx(
        [STEP_S * steps for steps in (12, 3, 7, 2)], abs=STEP_S
    )
    assert sum(each.work for each in outcomes) == 19 * TOKENS_OF_64_PX
