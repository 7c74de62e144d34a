"""Runs cases in one process, within limits of memory and time. Each case is made from seed and number alone."""

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

Kind = Literal["pictures", "heif", "parts", "bodies", "charsets", "depths", "lengths", "headers"]
PICTURE_KINDS: tuple[Kind, ...] = ("pictures", "heif", "parts")

ADDRESS_SPACE_BYTES = MAX_GROWTH_BYTES + 64 * MIB
"""How much address space a process may add: an allocation beyond it raises MemoryError, which is a finding."""
THREADS_BYTES = 960 * MIB
"""In addition where the application runs: it runs threads, which reserve far more than they use."""

_NUMBER_BYTES = 16


@dataclass(frozen=True)
class Finding:
    """A case that failed. `payload`: its input, pickled if it is not bytes."""

    kind: Kind
    number: int
    what: str
    payload: bytes


@dataclass
class Tally:
    """How cases ended, and their time and memory.

    Attributes:
        growth_bytes: peak resident memory of the process that decodes, above the idle one's.
        crashes: how many of the refused ended that process.
    """

    accepted: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    growth_bytes: int = 0
    crashes: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        self.accepted += other.accepted
        self.refused += other.refused
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.growth_bytes = max(self.growth_bytes, other.growth_bytes)
        self.crashes += other.crashes
        self.findings += other.findings


class ProcessState:
    """State of this process, set once before its first case."""

    idle_bytes: int | None = None
    progress_file: int | None = None


def begin(kind: Kind, folder: str) -> None:
    """Prepare for cases: warm up, then limit memory. Each process writes its current case to a file in `folder`."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")  # Pillow warns of odd files and reads on; a warning is no finding
    if kind in ("pictures", "heif"):
        bulky_pictures()
    run_cases(kind, 0, range(20))
    ProcessState.idle_bytes = _status_bytes("VmRSS", _decoding_pid(kind))
    ProcessState.progress_file = os.open(Path(folder) / f"{kind}-{os.getpid()}", os.O_WRONLY | os.O_CREAT)
    most = _status_bytes("VmSize") + ADDRESS_SPACE_BYTES + (0 if kind in PICTURE_KINDS else THREADS_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _decoding_pid(kind: Kind) -> int:
    return picture_case.decoder().pid if kind == "heif" else os.getpid()


def run_cases(kind: Kind, seed: int, numbers: Sequence[int]) -> Tally:
    """Run cases and count how they ended. SIGALRM ends the process if one hangs."""
    tally = Tally()
    run = _target(kind)
    pid = _decoding_pid(kind)
    idle_bytes = _status_bytes("VmRSS", pid) if ProcessState.idle_bytes is None else ProcessState.idle_bytes
    for number in numbers:
        record_start(number)
        payload = make(kind, seed, number)
        _reset_peak(pid)  # making a case may take more than reading it
        began = time.perf_counter()
        try:
            accepted = run(payload)
        except Exception:
            saved = payload if isinstance(payload, bytes) else pickle.dumps(payload)
            tally.findings.append(Finding(kind, number, traceback.format_exc(), saved))
        else:
            tally.accepted += accepted
            tally.refused += not accepted
        tally.slowest_s = max(tally.slowest_s, time.perf_counter() - began)
        if kind == "heif" and picture_case.crashed():
            tally.crashes += 1
        else:
            tally.growth_bytes = max(tally.growth_bytes, _status_bytes("VmHWM", pid) - idle_bytes)
        pid = _decoding_pid(kind)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return tally


def make(kind: Kind, seed: int, number: int) -> Any:
    """A case's input, the same each time: bytes of a picture in base64, or a Call."""
    rng = random.Random(f"{seed}/{kind}/{number}")
    if kind == "pictures":
        return picture_case.make(rng)
    if kind == "heif":
        return picture_case.make_heif(rng)
    if kind == "parts":
        return picture_case.make_of_many_parts(rng)
    # Here, as they take seconds to import, and processes for pictures do not need them.
    from tests.fuzz import bodies, extremes

    return bodies.make(rng) if kind == "bodies" else extremes.make(kind, rng)


def _target(kind: Kind) -> Callable[[Any], bool]:
    if kind == "heif":
        return picture_case.run_heif
    if kind in PICTURE_KINDS:
        return picture_case.run
    from tests.fuzz.body_case import Application  # here, as in make()

    return Application.of_this_process().run


def record_start(number: int) -> None:
    """Record that this case starts, in case it kills the process."""
    signal.setitimer(signal.ITIMER_REAL, MAX_CASE_S)
    if ProcessState.progress_file is not None:
        os.pwrite(ProcessState.progress_file, str(number).encode().ljust(_NUMBER_BYTES), 0)


def _reset_peak(pid: int) -> None:
    """Reset the kernel's record of a process's peak of resident memory."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status_bytes(name: str, pid: int | None = None) -> int:
    # Not ru_maxrss: a spawned process inherits that figure from its parent and cannot reset it.
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid or 'self'}/status").read_text())
    return int(found[1]) * 1024 if found else 0
