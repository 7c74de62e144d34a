"""Some of the attacks of `hostile.py`, a few seconds each, beside a well-behaved client: what it is answered, and the
memory afterwards. `python -m tests.service.hostile` has them all, for longer, and judges times, too."""

import asyncio

import pytest

from tests.service.attacker import Target
from tests.service.attacks import LARGE
from tests.service.conftest import KEY, KEY_IN_FILE, Host
from tests.service.hostile import Phase, phase
from tests.service.receiver import Receiver

SECONDS = 4.0
MOST_GROWTH_MIB = 4096.0


@pytest.fixture(scope="module")
def warm(narrow_host: Host) -> Host:
    """A service that has done the largest edit of the attacks before."""
    assert narrow_host.service.run(**LARGE)["status"] == "COMPLETED"
    return narrow_host


@pytest.mark.parametrize("name", ["control-headers", "slow-pictures", "stalled-large-uploads", "large-statuses"])
def test_a_well_behaved_client_is_served_beside(name: str, warm: Host, receiver: Receiver) -> None:
    service = warm.service.with_key(KEY_IN_FILE)
    target = Target(service.url, KEY, receiver.origin)
    seen: Phase = asyncio.run(phase(service, warm.process.pid, name, SECONDS, target, MOST_GROWTH_MIB))
    print(f"{name}: {seen.figures}")
    assert seen.outcomes.total() > 0
    assert seen.problems == []
