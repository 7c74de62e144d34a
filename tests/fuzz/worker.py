"""What one process does: cases, each made from seed and number alone, under bounds of memory and time."""

import logging
import os
import pickle
import random
import re
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.fuzz import picture_case
from tests.fuzz.limits import MAX_CASE_S, MAX_GROWTH_BYTES, MIB
from tests.fuzz.seeds import bulky_pictures

Kind = Literal["pictures", "bodies"]

ADDRESS_SPACE_BYTES: dict[Kind, int] = {
    "pictures": MAX_GROWTH_BYTES + 64 * MIB,
    "bodies": MAX_GROWTH_BYTES + 1024 * MIB,
}
"""What a process may map beyond what it began with: an allocation above it is a MemoryError, and that a finding.
Threads reserve far more than they use, and the application decodes on threads."""

_NUMBER_BYTES = 16


@dataclass(frozen=True)
class Finding:
    """A case that ended as none may. `given`: its input, pickled where it is more than bytes."""

    kind: Kind
    number: int
    what: str
    given: bytes


@dataclass
class Tally:
    """How cases ended, and what they cost. `growth_bytes`: peak resident memory above that of the idle process."""

    taken: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    growth_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        self.taken += other.taken
        self.refused += other.refused
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.growth_bytes = max(self.growth_bytes, other.growth_bytes)
        self.findings += other.findings


class Bounds:
    """Of this process: set once, before its first case."""

    idle_bytes: int | None = None
    diary: int | None = None


def begin(kind: Kind, folder: str) -> None:
    """Make ready for cases: warm up, then bound memory. Each process notes in `folder` which case it is at."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")  # Pillow warns of odd files and reads on; that it stops there is not what is asked
    if kind == "pictures":
        bulky_pictures()
    run_cases(kind, 0, range(20))
    Bounds.idle_bytes = _status_bytes("VmRSS")
    Bounds.diary = os.open(Path(folder) / f"{kind}-{os.getpid()}", os.O_WRONLY | os.O_CREAT)
    most = _status_bytes("VmSize") + ADDRESS_SPACE_BYTES[kind]
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def run_cases(kind: Kind, seed: int, numbers: Sequence[int]) -> Tally:
    """Run cases and tell how they ended. One that hangs ends the process, by SIGALRM."""
    tally = Tally()
    idle_bytes = _status_bytes("VmRSS") if Bounds.idle_bytes is None else Bounds.idle_bytes
    run = _target(kind)
    for number in numbers:
        note(number)
        given = make(kind, seed, number)
        _forget_peak()  # making a case may take more than reading it
        began = time.perf_counter()
        try:
            taken = run(given)
        except Exception:
            whole = given if isinstance(given, bytes) else pickle.dumps(given)
            tally.findings.append(Finding(kind, number, traceback.format_exc(), whole))
        else:
            tally.taken += taken
            tally.refused += not taken
        tally.slowest_s = max(tally.slowest_s, time.perf_counter() - began)
        tally.growth_bytes = max(tally.growth_bytes, _status_bytes("VmHWM") - idle_bytes)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return tally


def make(kind: Kind, seed: int, number: int) -> Any:
    """A case's input, the same each time: bytes of a picture in base64, or a Call."""
    dice = random.Random(f"{seed}/{kind}/{number}")
    if kind == "pictures":
        return picture_case.make(dice)
    from tests.fuzz import bodies  # here, for it takes seconds to import, which a process for pictures can spare

    return bodies.make(dice)


def _target(kind: Kind) -> Callable[[Any], bool]:
    if kind == "pictures":
        return picture_case.run
    from tests.fuzz.body_case import Application  # here, as in make()

    return Application.of_this_process().run


def note(number: int) -> None:
    """Say that this case begins, in case that the process does not survive it."""
    signal.setitimer(signal.ITIMER_REAL, MAX_CASE_S)
    if Bounds.diary is not None:
        os.pwrite(Bounds.diary, str(number).encode().ljust(_NUMBER_BYTES), 0)


def _forget_peak() -> None:
    """Let the peak of resident memory be measured anew from here."""
    Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(name: str) -> int:
    # Not ru_maxrss: a spawned process inherits that figure from its parent, and cannot forget it.
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0
