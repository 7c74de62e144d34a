"""Kill processes; no job is lost: `python -m tests.service.chaos [--duration 180] [--every 5] [--rate 4] [--redis]`

Jobs are submitted at random times while, every few seconds, one process of the service is killed with SIGKILL: a
replica of any deployment, in turn; half-way through, the whole service, which is then started again. At the end every
accepted job must have ended COMPLETED, each ended once, with the picture of an undisturbed run, and no submission may
have been answered with 500; otherwise the exit status is 1.
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import requests
from rich.console import Console

from serve_app.tools.load.dialects import prepare_runpod
from serve_app.tools.load.load import Outcome, arrival_times, open_loop
from tests.pictures import alike
from tests.processes import redis_server
from tests.service.conftest import Host, Service, host_in
from tests.service.kill import kill_all, kill_replica
from tests.service.load import EDIT, STREAMED, Record, errors_of, post, send_load
from tests.service.receiver import Receiver, receiving

VICTIMS = ("Editor", "Jobs", "Ingress", "Rewriter")
END_S = 180.0
"""For the accepted jobs to end after the last kill."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--duration", type=float, default=180.0)
    parser.add_argument("--every", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=4.0, help="jobs per second")
    parser.add_argument("--redis", action="store_true")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        receiver = stack.enter_context(receiving())
        url = stack.enter_context(redis_server()) if options.redis else None
        host = make_host(folder, receiver, url)
        host.start()
        try:
            record, kills = Record(), Counter[str]()
            killer = threading.Thread(target=kill_repeatedly, args=(host, kills, options.duration, options.every))
            killer.start()
            outcomes = run_load(host.service, receiver, record, options.duration, options.rate)
            killer.join()
            return evaluate(host.service, receiver, record, kills, outcomes)
        finally:
            host.stop()


def make_host(folder: Path, receiver: Receiver, redis_url: str | None) -> Host:
    sqlite = {"kind": "sqlite", "path": str(folder / "jobs.sqlite3")}
    store = {"kind": "redis", "url": redis_url} if redis_url else sqlite
    jobs = {"store": store, "webhook_origins": [receiver.origin], "lease_s": 4, "webhook_gap_s": 1}
    return host_in(folder, jobs=jobs)


def run_load(
    service: Service, receiver: Receiver, record: Record, duration_s: float, rate_per_s: float
) -> list[Outcome]:
    """Submit jobs, whether or not earlier ones are done."""
    times = takewhile(lambda due_s: due_s < duration_s, arrival_times(rate_per_s, seed=0))
    prepare = partial(prepare_runpod, webhook=f"{receiver.origin}/hook/200")
    return asyncio.run(send_load(service, partial(open_loop, times=times), STREAMED, record, prepare))


def kill_repeatedly(host: Host, kills: Counter[str], duration_s: float, every_s: float) -> None:
    began = time.monotonic()
    victims = itertools.cycle(VICTIMS)
    restarted = False
    while time.monotonic() - began < duration_s:
        time.sleep(every_s)
        if not restarted and time.monotonic() - began > duration_s / 2:
            restarted = True
            kill_all(host.process)
            kills["the whole service"] += 1
            host.start()
        elif kill_replica(host.process, victim := next(victims)):
            kills[victim] += 1


def evaluate(service: Service, receiver: Receiver, record: Record, kills: Counter[str], outcomes: list[Outcome]) -> int:
    """Wait for the jobs to end, compare their pictures, and print the outcome; the exit status."""
    wait_until_healthy(service)
    began = time.monotonic()
    ends = {job_id: end_of(service, job_id, began + END_S) for job_id in record.accepted}
    waited_s = time.monotonic() - began
    wrong = [
        job_id
        for job_id, fields in record.accepted.items()
        if ends[job_id].get("status") == "COMPLETED" and not is_right(service, ends[job_id], fields)
    ]
    notified = Counter((body["id"], body["status"]) for _, body in receiver.calls)
    two_ends = [job_id for job_id in record.accepted if len({end for each, end in notified if each == job_id}) > 1]
    states = Counter(str(end.get("status", "lost")) for end in ends.values())
    console = Console(width=120)
    console.print(f"kills: {dict(kills)}; answers to submissions: {dict(record.answers)}")
    console.print(f"requests that broke off: {dict(errors_of(outcomes))}")
    console.print(f"accepted: {len(ends)}; ends: {dict(states)}, the last one {waited_s:.1f} s after the last kill")
    console.print(f"pictures unlike the undisturbed run's: {len(wrong)}; jobs reported with two ends: {len(two_ends)}")
    console.print(f"webhooks: {len({each for each, _ in notified})} jobs notified, {sum(notified.values())} calls")
    if errors := Counter(str(end["error"]) for end in ends.values() if "error" in end):
        console.print(f"errors: {dict(errors)}")
    bad = states["COMPLETED"] != len(ends) or wrong or two_ends or not ends
    bad = bad or any(each.status == 500 for each in record.submissions)
    return 1 if bad else 0


def wait_until_healthy(service: Service) -> None:
    deadline = time.monotonic() + END_S
    while post(service, "/runsync", {"input": EDIT}, timeout_s=60).get("status") != "COMPLETED":
        if time.monotonic() > deadline:
            raise TimeoutError("the service did not come back")
        time.sleep(1)


def end_of(service: Service, job_id: str, deadline: float) -> dict[str, Any]:
    while True:
        response = requests.get(f"{service.url}/status-sync/{job_id}?wait=10000", timeout=30)
        envelope: dict[str, Any] = response.json()
        if response.status_code == 404:
            return {}
        if envelope.get("status") not in ("IN_QUEUE", "IN_PROGRESS", None) or time.monotonic() > deadline:
            return envelope


def is_right(service: Service, envelope: dict[str, Any], fields: dict[str, Any]) -> bool:
    undisturbed = post(service, "/runsync", {"input": fields})
    return alike(envelope["output"]["images"][0], undisturbed["output"]["images"][0])


if __name__ == "__main__":
    sys.exit(main())
