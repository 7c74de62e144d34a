"""Measure what `editor.scheduling` does to the times of edits: `python -m tests.benchmarks.scheduling --output FILE`.

The engine runs on tiny random weights, one edit to a step, under both policies by turns, with the same arrivals:

- load: Poisson arrivals at 70 % of the capacity that is measured first; every eighth edit has 40 steps, the others 4.
- closed loop: eight clients of one key, each with its next edit as soon as one is done.
- deadlines: 64 edits at 80 % of the rate at which all deadlines can be met, by simulation.
- fairness: one key with 64 waiting edits, another one with one edit at a time.

Exit status 1 if a target of the first, the third or the fourth is missed, or a picture differs.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from serve_app.config import Scheduling
from serve_app.editor.engine.engine import Engine
from serve_app.editor.engine.ticket import Ticket
from serve_app.editor.loading.load import load_model
from serve_app.editor.model.edit_model import EditModel
from serve_app.edits.request import EditRequest
from serve_app.errors import ServiceError
from tests.conftest import RANDOM_FILE, settings_in
from tests.editor.engine.simulation import STEP_S, Arrival, arrivals, feasible_rate, mean, share, with_deadlines
from tests.fakes import edit_request, picture

POLICIES: tuple[Scheduling, ...] = ("shortest", "arrival")
SECTIONS = ("load", "closed loop", "deadlines", "fairness")
SHORT, LONG = 4, 40
SIDE_PX = 128
FAIR_SIDE_PX = 256
"""As large as the CPU files' edits: the steps of smaller ones mostly wait for Python, which 64 senders keep busy."""

END_S = 600.0


@dataclass
class Times:
    """What a run of one policy took: seconds of each edit by its steps (infinite if it was dropped), and in all."""

    of_steps: dict[int, list[float]] = field(default_factory=lambda: {SHORT: [], LONG: []})
    elapsed_s: float = 0.0
    pictures: list[bytes | None] = field(default_factory=list)

    @property
    def all(self) -> list[float]:
        return [each for times in self.of_steps.values() for each in times]


class Runner:
    """Sends edits to an engine at their times and records when they end."""

    def __init__(self, engine: Engine, side_px: int) -> None:
        self._engine = engine
        self._side_px = side_px

    def run(self, arriving: Sequence[Arrival]) -> Times:
        times, began = Times(), time.monotonic()
        sent = []
        for number, arrival in enumerate(arriving):
            time.sleep(max(0.0, began + arrival.at - time.monotonic()))
            sent.append((arrival, self.send(number, arrival)))
        for arrival, (ticket, ended) in sent:
            assert ended.wait(END_S)
            took_s = ended.at - began - arrival.at if ticket.future.exception() is None else float("inf")
            times.of_steps[arrival.num_steps].append(took_s)
            times.pictures.append(None if ticket.future.exception() else ticket.future.result().data)
        times.elapsed_s = time.monotonic() - began
        return times

    def send(self, number: int, arrival: Arrival) -> tuple[Ticket, "Ended"]:
        request = edit_request(f"edit {number}", steps=arrival.num_steps, side_px=self._side_px)
        ticket = _ticket(replace(request, client=arrival.client), self._side_px, arrival.timeout_s)
        ended = Ended()
        ticket.future.add_done_callback(lambda _: ended.set())
        self._engine.submit(ticket)
        return ticket, ended


class Ended(threading.Event):
    """An event that knows when it was set."""

    at = 0.0

    def set(self) -> None:
        self.at = time.monotonic()
        super().set()


def _ticket(request: EditRequest, side_px: int, timeout_s: float | None = None) -> Ticket:
    return Ticket(request, (picture(side_px, side_px),), timeout_s=timeout_s)


@contextmanager
def engine_of(model: EditModel, scheduling: Scheduling, side_px: int = SIDE_PX) -> Iterator[Runner]:
    """An engine whose steps run one edit each."""
    one = _ticket(edit_request("one", side_px=side_px), side_px).num_tokens
    model.forget()
    engine = Engine(lambda: model, max_pack_tokens=one, max_waiting=1000, max_paused=64, scheduling=scheduling)
    engine.start()
    try:
        yield Runner(engine, side_px)
    finally:
        engine.close()


def seconds_alone(model: EditModel, num_steps: int, side_px: int = SIDE_PX, rounds: int = 5) -> float:
    """Median seconds of an edit that is alone."""
    with engine_of(model, "shortest", side_px) as runner:
        return share([runner.run([Arrival(0.0, num_steps)]).all[0] for _ in range(rounds + 1)][1:], 0.5)


def in_turns(
    model: EditModel, arriving: Sequence[Sequence[Arrival]], on_run: Callable[[str], None]
) -> dict[str, Times]:
    """Run each list of arrivals under both policies, by turns."""
    found: dict[str, Times] = {policy: Times() for policy in POLICIES}
    for number, load in enumerate(arriving):
        for policy in POLICIES if number % 2 else reversed(POLICIES):
            with engine_of(model, policy) as runner:
                times = runner.run(load)
            on_run(policy)
            for num_steps, own in times.of_steps.items():
                found[policy].of_steps[num_steps] += own
            found[policy].elapsed_s += times.elapsed_s
            found[policy].pictures += times.pictures
    return found


def load(model: EditModel, rounds: int, num: int, on_run: Callable[[str], None]) -> tuple[dict[str, Any], list[str]]:
    mean_s = (7 * seconds_alone(model, SHORT) + seconds_alone(model, LONG)) / 8
    found = in_turns(model, [arrivals(num, 0.7 / mean_s, seed) for seed in range(rounds)], on_run)
    figures = {policy: _figures(times) for policy, times in found.items()}
    ratios = {name: figures["shortest"][name] / figures["arrival"][name] for name in figures["arrival"]}
    targets = {"short_p95_s": 0.4, "mean_s": 0.6, "long_mean_s": 1.6}
    missed = [
        f"{name}: {ratios[name]:.2f} times, {most} wanted" for name, most in targets.items() if ratios[name] > most
    ]
    if abs(ratios["edits_per_s"] - 1) > 0.03:
        missed.append(f"throughput: {ratios['edits_per_s']:.3f} times")
    if found["shortest"].pictures != found["arrival"].pictures:
        missed.append("pictures differ")
    return {**figures, "ratios": ratios, "mean_alone_s": mean_s}, missed


def closed_loop(model: EditModel, num: int, on_run: Callable[[str], None]) -> tuple[dict[str, Any], list[str]]:
    figures: dict[str, Any] = {}
    for policy in POLICIES:
        with engine_of(model, policy) as runner:
            figures[policy] = _figures(_loop(runner, num_clients=8, num=num))
        on_run(policy)
    return figures, []


def _loop(runner: Runner, num_clients: int, num: int) -> Times:
    times, began, lock, numbers = Times(), time.monotonic(), threading.Lock(), iter(range(num))

    def client() -> None:
        for number in numbers:
            arrival = Arrival(0.0, LONG if number % 8 == 7 else SHORT)
            sent_at = time.monotonic()
            _, ended = runner.send(number, arrival)
            assert ended.wait(END_S)
            with lock:
                times.of_steps[arrival.num_steps].append(ended.at - sent_at)

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.elapsed_s = time.monotonic() - began
    return times


def deadlines(model: EditModel, rounds: int, on_run: Callable[[str], None]) -> tuple[dict[str, Any], list[str]]:
    """The simulation's seconds are stretched by what a step takes here, the encoding and the decoding included."""
    stretch = (7 * seconds_alone(model, SHORT) / SHORT + seconds_alone(model, LONG) / LONG) / 8 / STEP_S
    loads = []
    for seed in range(rounds):
        simulated = with_deadlines(arrivals(64, 0.8 * feasible_rate(64, seed), seed), seed)
        loads.append([_stretched(each, stretch) for each in simulated])
    found = in_turns(model, loads, on_run)
    met = {policy: mean([took_s < float("inf") for took_s in times.all]) for policy, times in found.items()}
    return {"met": met}, [] if met["shortest"] >= 0.95 else [f"{met['shortest']:.3f} of the deadlines met, 0.95 wanted"]


def _stretched(arrival: Arrival, factor: float) -> Arrival:
    return replace(arrival, at=arrival.at * factor, timeout_s=(arrival.timeout_s or 0.0) * factor)


def fairness(model: EditModel, num: int, on_run: Callable[[str], None]) -> tuple[dict[str, Any], list[str]]:
    alone_s = seconds_alone(model, SHORT, FAIR_SIDE_PX)
    figures: dict[str, Any] = {"alone_s": alone_s}
    for policy in POLICIES:
        with engine_of(model, policy, FAIR_SIDE_PX) as runner:
            is_over = threading.Event()
            crowd = [threading.Thread(target=partial(_keep_sending, runner, number, is_over)) for number in range(64)]
            for thread in crowd:
                thread.start()
            took = []
            for number in range(num):
                sent_at = time.monotonic()
                _, ended = runner.send(number, Arrival(0.0, SHORT, client="one"))
                assert ended.wait(END_S)
                took.append(ended.at - sent_at)
            is_over.set()
        for thread in crowd:
            thread.join()
        figures[policy] = {"p95_s": share(took, 0.95), "times_alone": share(took, 0.95) / alone_s}
        on_run(policy)
    times = figures["shortest"]["times_alone"]
    return figures, [] if times <= 2.5 else [f"p95 is {times:.2f} times its time alone, 2.5 wanted"]


def _keep_sending(runner: Runner, number: int, is_over: threading.Event) -> None:
    try:
        while not is_over.is_set():
            runner.send(number, Arrival(0.0, SHORT, client="many"))[1].wait(END_S)
    except ServiceError:
        pass  # the engine was closed


def _figures(times: Times) -> dict[str, float]:
    return {
        "short_p50_s": share(times.of_steps[SHORT], 0.5),
        "short_p95_s": share(times.of_steps[SHORT], 0.95),
        "long_mean_s": mean(times.of_steps[LONG]),
        "mean_s": mean(times.all),
        "edits_per_s": len(times.all) / times.elapsed_s,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scheduling", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=4, help="of arrivals for each policy (default %(default)s)")
    parser.add_argument("--edits", type=int, default=192, help="of each round of the load (default %(default)s)")
    parser.add_argument("--section", action="append", choices=SECTIONS, help="may be repeated; default: all")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(highlight=False, soft_wrap=True)
    model = load_model(settings_in(RANDOM_FILE).editor)
    results, is_missed = {}, False
    sections = {
        "load": partial(load, model, options.rounds, options.edits),
        "closed loop": partial(closed_loop, model, options.edits),
        "deadlines": partial(deadlines, model, options.rounds),
        "fairness": partial(fairness, model, 60),
    }
    for name in options.section or SECTIONS:
        section = sections[name]
        results[name], missed = section(lambda policy, name=name: console.print(f"{name}: a run of {policy} is done"))
        console.print_json(json.dumps(results[name]))
        for message in missed:
            console.print(f"MISSED {name}: {message}", style="red")
        is_missed = is_missed or bool(missed)
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    return int(is_missed)


if __name__ == "__main__":
    sys.exit(main())
