"""Whose job is next: clients take turns, and the jobs of each keep their order."""

import asyncio
from dataclasses import replace

import pytest

from serve_app.edits.fair_queue import FairQueue
from serve_app.edits.job import JobRecord, JobSpec, JobState
from serve_app.edits.request import LOW_PRIORITY_DELAY_S
from serve_app.jobs.live import LiveJob
from tests.fakes import FakeEditor, picture
from tests.jobs.conftest import Stores, async_test
from tests.jobs.replicas import Replica, replica_on, spec
from tests.waiting import until_async


def waiting(name: str, created_at: float = 0.0, *, low_priority: bool = False) -> LiveJob:
    """A job whose client is the first letter of its name."""
    job = spec(name, client=name[0])
    edits = tuple(replace(edit, low_priority=low_priority) for edit in job.edits)
    return LiveJob(replace(job, edits=edits), JobRecord(JobState.IN_QUEUE, created_at))


def order(queue: FairQueue[LiveJob]) -> list[str]:
    return [queue.pop().id for _ in range(len(queue))]


def test_clients_take_turns_and_each_keeps_its_order() -> None:
    queue: FairQueue[LiveJob] = FairQueue(lambda: 100.0)
    for created_at, name in enumerate(["a2", "a1", "a3", "a4", "b1", "b2", "c1"]):
        queue.add(waiting(name, created_at))
    assert order(queue) == ["a2", "b1", "c1", "a1", "b2", "a3", "a4"]


def test_a_client_that_always_has_one_job_is_not_always_first() -> None:
    queue: FairQueue[LiveJob] = FairQueue(lambda: 100.0)
    for number in range(5):
        queue.add(waiting(f"a{number}", number))
    started = []
    for number in range(8):
        if number % 2 == 0:
            queue.add(waiting(f"b{number}", 10 + number))
        started.append(queue.pop().id[0])
    assert "".join(started) == "abababab"


def test_low_priority_yields_to_every_client_but_not_forever() -> None:
    now = [100.0]
    queue: FairQueue[LiveJob] = FairQueue(lambda: now[0])
    for job in (waiting("b1", 50.0, low_priority=True), waiting("a1", 90.0), waiting("a2", 91.0), waiting("a3", 92.0)):
        queue.add(job)
    assert [queue.pop().id for _ in range(2)] == ["a1", "a2"]
    now[0] = 50.0 + LOW_PRIORITY_DELAY_S
    assert order(queue) == ["b1", "a3"]


def test_a_job_that_leaves_the_queue_is_not_served() -> None:
    queue: FairQueue[LiveJob] = FairQueue(lambda: 100.0)
    jobs = [waiting(name) for name in ("a1", "b1")]
    for job in jobs:
        queue.add(job)
    for _ in range(2):
        queue.discard(jobs[0])
    assert order(queue) == ["b1"]
    with pytest.raises(ValueError, match="empty"):
        queue.pop()


def job_of(client: str, number: int) -> JobSpec:
    return spec(f"{client} {number}", client=client)


async def starts_until_all_of(client: str, number: int, editor: FakeEditor) -> list[str]:
    """The clients of the jobs in the order of their starts, until so many of one client's have started. One job ends
    after the other."""
    assert editor.gate is not None
    while (started := [job.prompt.split()[0] for job in editor.requests]).count(client) < number:
        editor.gate.release()
        await num_started(editor, len(started) + 1)
    return started


async def num_started(editor: FakeEditor, number: int) -> None:
    await until_async(lambda: len(editor.requests) >= number)


@async_test
@pytest.mark.parametrize("max_active", [1, 3, 8])
async def test_four_jobs_behind_a_hundred_of_another_client_start_before_its_twelfth(
    stores: Stores, max_active: int
) -> None:
    editor = FakeEditor(gate=asyncio.Semaphore(0))
    async with replica_on(stores.open(), editor, max_active_jobs=max_active) as service:
        for number in range(100):
            await service.submit(job_of("first", number), [(picture(),)])
        for number in range(4):
            await service.submit(job_of("second", number), [(picture(),)])
        await num_started(editor, max_active)
        started = await starts_until_all_of("second", 4, editor)
        assert started.count("first") < 12
        for client in ("first", "second"):
            numbers = [int(job.prompt.split()[1]) for job in editor.requests if job.prompt.startswith(client)]
            assert sorted(numbers) == list(range(len(numbers)))
            assert max_active > 1 or numbers == sorted(numbers)


@async_test
async def test_the_order_is_fair_after_a_takeover(stores: Stores) -> None:
    async with replica_on(stores.open(), FakeEditor(gate=asyncio.Semaphore(0)), max_active_jobs=1) as first:
        await submit_all(first, "first", 40)
        await submit_all(first, "second", 4)
    editor = FakeEditor(gate=asyncio.Semaphore(0))
    async with replica_on(stores.open(), editor, max_active_jobs=6):
        await stores.let_pass(1.5)
        await num_started(editor, 6)
        started = await starts_until_all_of("second", 4, editor)
        assert started.count("first") < 12


async def submit_all(service: Replica, client: str, number: int) -> None:
    for each in range(number):
        await service.submit(job_of(client, each), [(picture(),)])
