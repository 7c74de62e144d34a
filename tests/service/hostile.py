"""Attack the service beside a well-behaved client: `python -m tests.service.hostile [--seconds 30] [--attack NAME]…`

A client with an API key of its own sends an edit per second and polls /health/live four times a second: first alone,
then while each attack of `attacks.py` runs in turn, in a process of its own. Exit status 1 unless, in each phase, the
client's 95th percentile stays within four times that of the quiet phase, all its edits and polls are answered with 200,
each poll within a second, and the memory of each process is back within 64 MiB of its start. `--output FILE` writes all
figures as JSON.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import requests
from rich.console import Console

from tests.conftest import ROOT
from tests.service.attacker import Target
from tests.service.attacks import ATTACKS, LARGE, LONG
from tests.service.conftest import Host, Service, host_in
from tests.service.footprint import Footprint
from tests.service.neighbour import Record, behave
from tests.service.receiver import Receiver, receiving

KEY, HOSTILE_KEY, OPERATOR_KEY = "key-of-the-neighbour", "key-of-the-attacker", "key-of-the-operator"
MAX_SLOWDOWN = 4.0
MAX_POLL_S = 1.0
SETTLE_S = 30.0
WARM_UP_S = 5.0
PREPARE_S = 300.0
"""For the job that an attack needs to have ended."""
READY = b"ready\n"
SHARES = {"p50": 0.5, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Phase:
    """What happened beside an attack.

    Attributes:
        outcomes: what came of the attempts; empty: there was no attack.
        is_aborted: the service took too much memory, so the attack was ended.
    """

    name: str
    record: Record
    footprint: Footprint
    outcomes: Counter[str]
    is_aborted: bool

    @property
    def problems(self) -> list[str]:
        """What does not depend on the speed of the machine."""
        found = [f"an edit was answered with {answer}" for answer in self.record.answers if answer != "200"]
        found += [f"/health/live was answered with {answer}" for answer in self.record.poll_answers if answer != "200"]
        found += [f"{name} has grown by {mib:.0f} MiB" for name, mib in self.footprint.grown.items()]
        return [*found, "the service took too much memory"] if self.is_aborted else found

    def delays(self, quiet: "Phase") -> list[str]:
        """What took too long."""
        slowdown = self.record.edit_s(0.95) / quiet.record.edit_s(0.95)
        found = {
            f"the edits' p95 is {slowdown:.1f} times the quiet one": slowdown > MAX_SLOWDOWN,
            f"/health/live took {self.record.slowest_poll_s:.1f} s": self.record.slowest_poll_s > MAX_POLL_S,
        }
        return [problem for problem, is_so in found.items() if is_so]

    @property
    def figures(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "edit_s": {name: self.record.edit_s(share) for name, share in SHARES.items()},
            "answers": self.record.answers,
            "slowest_poll_s": self.record.slowest_poll_s,
            "poll_answers": self.record.poll_answers,
            "outcomes": self.outcomes,
            "mib": {kind: asdict(self.footprint)[kind] for kind in ("start", "peak", "end")},
        }


async def phase(
    service: Service, pid: int, name: str | None, seconds: float, target: Target, most_growth_mib: float
) -> Phase:
    """Let the well-behaved client work beside an attack, or alone, and wait until the memory is back.

    Args:
        pid: of the service's first process.
        name: of the attack; None: there is none.
        most_growth_mib: the growth of the whole service at which the attack is ended, to protect the machine.
    """
    footprint, outcomes, is_aborted = Footprint(pid), Counter[str](), False
    async with footprint.sampling(most_growth_mib) as exceeded:
        attacker = None if name is None else await begin(name, target, seconds)
        behaving = asyncio.create_task(behave(service, seconds))
        if attacker is not None:
            outcomes, is_aborted = await end(attacker, exceeded)
        record = await behaving
    await footprint.settle(SETTLE_S, partial(_poll, service))
    return Phase(name or "quiet", record, footprint, outcomes, is_aborted)


def _poll(service: Service) -> None:
    for _ in range(20):
        requests.get(f"{service.url}/health/live", timeout=5)


async def begin(name: str, target: Target, seconds: float) -> asyncio.subprocess.Process:
    """Start an attack, prepared, in a process of its own."""
    options = {"url": target.url, "key": target.key, "stalling": target.stalling, "seconds": seconds}
    arguments = [name, *(f"--{option}={value}" for option, value in options.items())]
    attacker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.service.attacks",
        *arguments,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert attacker.stdout is not None
    async with asyncio.timeout(PREPARE_S):
        assert await attacker.stdout.readline() == READY, f"{name} did not begin"
    return attacker


async def end(attacker: asyncio.subprocess.Process, exceeded: asyncio.Event) -> tuple[Counter[str], bool]:
    """What came of an attack, and whether it was ended early, because the service took too much memory."""
    reading, exceeding = asyncio.create_task(attacker.communicate()), asyncio.create_task(exceeded.wait())
    try:
        await asyncio.wait((reading, exceeding), return_when=asyncio.FIRST_COMPLETED)
    finally:
        exceeding.cancel()
        if is_aborted := not reading.done():
            attacker.terminate()
    printed, _ = await reading
    if attacker.returncode and not is_aborted:
        raise RuntimeError(f"the attacker ended with status {attacker.returncode}")
    return Counter(json.loads(printed or b"{}")), is_aborted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each attack")
    parser.add_argument("--attack", action="append", choices=ATTACKS, help="may be repeated; default: all")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    parser.add_argument("--most-growth-mib", type=float, default=4096.0, help="of the service; then an attack is ended")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, receiving() as receiver:
        host = make_host(Path(folder), receiver)
        host.start()
        try:
            target = Target(host.service.url, HOSTILE_KEY, receiver.origin)
            names = options.attack or list(ATTACKS)
            phases = asyncio.run(run(host, names, options.seconds, target, options.most_growth_mib))
        finally:
            host.stop()
    if options.output is not None:
        options.output.write_text(json.dumps([each.figures for each in phases], indent=1))
    return report(phases)


def make_host(folder: Path, receiver: Receiver) -> Host:
    jobs = {
        "store": {"kind": "sqlite", "path": str(folder / "jobs.sqlite3")},
        "webhook_origins": [receiver.origin],
        "webhook_gap_s": 1,
    }
    environment = {
        "CAMERA_EDIT_API_KEYS": f"neighbour:{KEY},attacker:{HOSTILE_KEY}",
        "CAMERA_EDIT_OPERATOR_KEYS": OPERATOR_KEY,
    }
    settings: dict[str, Any] = {
        "jobs": jobs,
        "fetch": {"origins": [receiver.origin]},
        # A step cannot be interrupted, and the largest one takes a second on a CPU. The default is twice the side of
        # the shipped GPU files' pictures; this is that of random-cpu.yaml's, rounded up for LARGE.
        "limits": {"max_side_px": 640, "max_work_per_s_per_key": 1.5},
    }
    return host_in(folder, environment=environment, key=KEY, rewriter=None, **settings)


async def run(host: Host, names: list[str], seconds: float, target: Target, most_growth_mib: float) -> list[Phase]:
    """The quiet phase, and one for each attack, of a service that has done its largest edits before."""
    for fields in ({**LONG, "num_inference_steps": 1}, LARGE):
        await asyncio.to_thread(host.service.run, **fields)
    await behave(host.service, WARM_UP_S)
    phases = []
    for name in (None, *names):
        phases.append(await phase(host.service, host.process.pid, name, seconds, target, most_growth_mib))
        print_phase(phases[-1], phases[0])
        await asyncio.to_thread(purge, host.service)
    return phases


def purge(service: Service) -> None:
    """Cancel what an attack has left in the queue."""
    requests.post(f"{service.url}/purge-queue", headers={"authorization": f"Bearer {OPERATOR_KEY}"}, timeout=60)


def print_phase(phase: Phase, quiet: Phase) -> None:
    console = Console(width=120, highlight=False)
    record, footprint = phase.record, phase.footprint
    times = ", ".join(f"{name} {record.edit_s(share):.2f} s" for name, share in SHARES.items())
    console.print(f"\n[bold]{phase.name}[/bold]: attempts {dict(phase.outcomes)}")
    console.print(f"  edits: {times}; answers {dict(record.answers)}")
    console.print(f"  /health/live: slowest {record.slowest_poll_s:.2f} s; answers {dict(record.poll_answers)}")
    for name, mib in sorted(footprint.end.items()):
        start = footprint.start.get(name)
        before = "new" if start is None else f"{start:.0f}"
        console.print(f"  {name}: {before}, peak {footprint.peak[name]:.0f}, then {mib:.0f} MiB")
    for problem in phase.problems + phase.delays(quiet):
        console.print(f"  [red]VIOLATED: {problem}")


def report(phases: list[Phase]) -> int:
    quiet, *_ = phases
    violated = {each.name: problems for each in phases if (problems := each.problems + each.delays(quiet))}
    console = Console(width=120, highlight=False)
    console.print(f"\n{len(phases) - len(violated)} of {len(phases)} phases without a violation")
    for name, problems in violated.items():
        console.print(f"  [red]{name}[/red]: {'; '.join(problems)}")
    return 1 if violated else 0


if __name__ == "__main__":
    sys.exit(main())
