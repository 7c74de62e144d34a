"""Cases that kill their process. In a module of their own, because the spawned process imports it."""

import os
import signal
import time
from collections.abc import Sequence
from io import StringIO

import pytest
from rich.console import Console

from tests.fuzz import worker
from tests.fuzz.run import fuzz
from tests.fuzz.worker import Kind, Tally


def crash(kind: Kind, seed: int, numbers: Sequence[int]) -> Tally:
    worker.record_start(7)
    os.kill(os.getpid(), signal.SIGSEGV)
    return Tally()


def hang(kind: Kind, seed: int, numbers: Sequence[int]) -> Tally:
    worker.record_start(7)
    signal.setitimer(signal.ITIMER_REAL, 0.1)  # shorter than MAX_CASE_S
    time.sleep(60)
    return Tally()


@pytest.mark.parametrize("death", [crash, hang])
def test_a_case_that_kills_its_process_is_reported(death: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.run.run_cases", death)
    tally = fuzz("pictures", 1, 1, 1, Console(file=StringIO()))
    assert [(finding.kind, finding.number) for finding in tally.findings] == [("pictures", 7)]
