"""Make the job store unavailable: `python -m tests.service.outage [--redis-s 30] [--sqlite-s 5] [--clients 16]`

Clients run jobs with webhooks while Redis is stopped, and then, on another service, while the disk with the SQLite
file is full (as root, who may mount a small disk). Exit status 1 unless every accepted job ended COMPLETED, with one
webhook and the picture of an undisturbed run; no slot leaked; new work was refused with 503 and Retry-After meanwhile
and accepted within two seconds of the store's return; and /health/ready gave the reason.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import requests
from rich.console import Console

from serve_app.tools.load.dialects import prepare_runpod
from serve_app.tools.load.load import arrival_times, closed_loop, open_loop
from tests.pictures import alike
from tests.processes import RedisServer, free_port
from tests.service.chaos import end_of
from tests.service.conftest import Service, running
from tests.service.load import STREAMED, Record, errors_of, send_load
from tests.service.receiver import Receiver, receiving

BEFORE_S = AFTER_S = 3.0
END_S = 120.0
ACCEPTED_WITHIN_S = 2.0
POLL_S = 0.1
SUBMITTED_PER_S = 4.0
DISK_MIB = 48
HOOK = "/outage/200"


@dataclass
class Run:
    """What happened, with times on the monotonic clock.

    Attributes:
        hook: the path of the webhooks.
        sent: the answers to submissions, and the accepted jobs.
        errors: of submissions, or of requests for their progress.
        ready: responses of /health/ready: when, status and reason.
        outage: when the store became unavailable and available again.
    """

    hook: str
    sent: Record = field(default_factory=Record)
    errors: Counter[str] = field(default_factory=Counter)
    ready: list[tuple[float, int, str | None]] = field(default_factory=list)
    outage: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Outcome:
    """The measured result of a run.

    Attributes:
        calls: how often the webhook of each accepted job was called with a status.
        refused_calls: calls for jobs whose clients were refused.
        accepted_after_s: seconds from the store's return until a job was accepted.
    """

    ends: Counter[str]
    calls: Counter[tuple[str, str]]
    refused_calls: int
    wrong_pictures: int
    left: tuple[int, int]
    refusals: Counter[str]
    reasons: Counter[str]
    accepted_after_s: float

    @property
    def problems(self) -> list[str]:
        found = {
            "an accepted job did not complete": set(self.ends) != {"COMPLETED"},
            "a webhook was not notified exactly once": set(self.calls.values()) != {1}
            or self.calls.total() != self.ends.total(),
            "a job ran whose client was refused": self.refused_calls > 0,
            "a picture differs from an undisturbed one": self.wrong_pictures > 0,
            "a slot leaked": self.left != (0, 0),
            "a refusal was no 503 with Retry-After": not set(self.refusals) <= {"503 with Retry-After"},
            "new work was not refused": not self.refusals,
            "/health/ready did not give the reason": set(self.reasons) != {"store"},
        }
        return [problem for problem, is_so in found.items() if is_so]


def run_load(
    service: Service,
    receiver: Receiver,
    hook: str,
    stop_store: Callable[[], None],
    restore_store: Callable[[], None],
    outage_s: float,
    clients: int,
) -> Run:
    """Let clients run jobs before, during and after an outage. Submissions at random times, besides, never pause."""
    run, over = Run(hook), threading.Event()
    times = takewhile(lambda _: not over.is_set(), arrival_times(SUBMITTED_PER_S, seed=0))
    loops = (
        partial(closed_loop, num_clients=clients - 1, goes_on=lambda _: not over.is_set()),
        partial(open_loop, times=times),
    )
    prepare = partial(prepare_runpod, webhook=f"{receiver.origin}{hook}")

    async def send() -> None:
        loads = (send_load(service, loop, STREAMED, run.sent, prepare) for loop in loops)
        for outcomes in await asyncio.gather(*loads):
            run.errors += errors_of(outcomes)

    def watch() -> None:
        while not over.wait(POLL_S):
            sent = time.monotonic()
            response = requests.get(f"{service.url}/health/ready", timeout=30)
            run.ready.append((sent, response.status_code, response.json().get("reason")))

    threads = [threading.Thread(target=lambda: asyncio.run(send())), threading.Thread(target=watch)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(BEFORE_S)
        stop_store()
        began = time.monotonic()
        time.sleep(outage_s)
        restore_store()
        run.outage = began, time.monotonic()
        time.sleep(AFTER_S)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    return run


def evaluate(service: Service, receiver: Receiver, run: Run) -> Outcome:
    """Wait for the ends of all accepted jobs, and compare."""
    deadline = time.monotonic() + END_S
    ends = {job_id: end_of(service, job_id, deadline) for job_id in run.sent.accepted}
    began, back = run.outage
    calls = Counter((body["id"], body["status"]) for body in receiver.bodies(run.hook, len(ends), timeout_s=60))
    submissions = run.sent.submissions
    broken = Counter({kind: number for kind, number in run.errors.items() if not kind.startswith("HTTP")})
    accepted = [each.answered_at for each in submissions if each.status == 200 and each.answered_at > back]
    jobs = requests.get(f"{service.url}/health", timeout=30).json()["jobs"]
    return Outcome(
        ends=Counter(str(end.get("status", "lost")) for end in ends.values()),
        calls=Counter({call: number for call, number in calls.items() if call[0] in ends}),
        refused_calls=sum(number for call, number in calls.items() if call[0] not in ends),
        wrong_pictures=wrong_pictures(service, run, ends),
        left=(jobs["inQueue"], jobs["inProgress"]),
        refusals=Counter(each.kind for each in submissions if each.status != 200) + broken,
        reasons=Counter(str(reason) for at, status, reason in run.ready if status == 503 and began < at < back),
        accepted_after_s=min(accepted, default=float("inf")) - back,
    )


def wrong_pictures(service: Service, run: Run, ends: dict[str, dict[str, Any]]) -> int:
    """How many of the last 32 accepted jobs have another picture than when run again."""
    disturbed = list(run.sent.accepted.items())[-32:]
    return sum(
        not alike(ends[job_id]["output"]["images"][0], service.run(**fields)["output"]["images"][0])
        for job_id, fields in disturbed
        if ends[job_id].get("status") == "COMPLETED"
    )


def report(name: str, outcome: Outcome) -> int:
    console = Console(width=120, highlight=False)
    console.print(f"{name}: {outcome.ends.total()} jobs accepted, ends {dict(outcome.ends)}")
    console.print(f"  webhook calls: {outcome.calls.total()}, for refused jobs: {outcome.refused_calls}")
    console.print(f"  wrong pictures: {outcome.wrong_pictures}")
    console.print(f"  refusals: {dict(outcome.refusals)}; reasons of /health/ready: {dict(outcome.reasons)}")
    console.print(f"  left in queue and in progress: {outcome.left}")
    console.print(f"  a job was accepted {outcome.accepted_after_s:.2f} s after the store's return")
    problems = outcome.problems
    if outcome.accepted_after_s > ACCEPTED_WITHIN_S:
        problems.append("new work was accepted too late")
    for problem in problems:
        console.print(f"  [red]{problem}")
    return 1 if problems else 0


def with_redis(folder: Path, receiver: Receiver, outage_s: float, clients: int) -> int:
    server = RedisServer(folder)
    server.start()
    try:
        jobs = {**jobs_settings(receiver), "store": {"kind": "redis", "url": server.url}}
        with running(folder, free_port(), jobs, rewriter=None) as service:
            run = run_load(service, receiver, HOOK, server.stop, server.start, outage_s, clients)
            return report(f"Redis stopped for {outage_s:g} s", evaluate(service, receiver, run))
    finally:
        server.stop()


def with_sqlite(folder: Path, receiver: Receiver, outage_s: float, clients: int) -> int:
    with small_disk(folder / "disk") as disk:
        filler = disk / "filler"
        jobs = {**jobs_settings(receiver), "store": {"kind": "sqlite", "path": str(disk / "jobs.sqlite3")}}
        with running(folder, free_port(), jobs, rewriter=None) as service:
            run = run_load(service, receiver, HOOK, lambda: fill(filler), filler.unlink, outage_s, clients)
            return report(f"SQLite's disk full for {outage_s:g} s", evaluate(service, receiver, run))


def jobs_settings(receiver: Receiver) -> dict[str, Any]:
    return {"webhook_origins": [receiver.origin], "webhook_gap_s": 0.5, "lease_s": 10}


def fill(filler: Path) -> None:
    """Fill the disk."""
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A small disk in memory; only root may mount one."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--redis-s", type=float, default=30.0)
    parser.add_argument("--sqlite-s", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    status = 0
    for part, outage_s in ((with_redis, options.redis_s), (with_sqlite, options.sqlite_s)):
        with tempfile.TemporaryDirectory() as folder, receiving() as receiver:
            status |= part(Path(folder), receiver, outage_s, options.clients)
    return status


if __name__ == "__main__":
    sys.exit(main())
