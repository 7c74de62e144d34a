"""Places in the queue of jobs: they are held before pictures are prepared, and no client takes all beside another."""

import asyncio
from itertools import count
from typing import Any

import pytest

from serve_app.config import JobSettings
from serve_app.edits.fairness import ACTIVE_S
from serve_app.errors import EditFailed, KeyPlacesTaken, Overloaded, StoreFull
from serve_app.jobs.places import HOLD_S, STORE_FULL_S, JobPlaces
from tests.fakes import FakeEditor, picture
from tests.jobs.conftest import Stores, async_test
from tests.jobs.replicas import Replica, replica_on, spec, state

NINE: dict[str, Any] = {"max_active_jobs": 1, "max_queued_jobs": 8}


class Scene:
    """Nine places without any job, and a clock."""

    def __init__(self, **settings: int) -> None:
        self.now = 100.0
        self._numbers = count()
        self.places = JobPlaces(JobSettings(**{**NINE, **settings}), list, lambda: self.now)

    def num_held(self, client: str, num_requests: int) -> int:
        """How many of so many new jobs get a place. The first jobs' ids are 0, 1, ..."""
        return sum(self.holds(str(next(self._numbers)), client) for _ in range(num_requests))

    def holds(self, job_id: str, client: str) -> bool:
        try:
            self.places.hold(job_id, client)
        except Overloaded:
            return False
        return True


def test_places_are_held_once_per_job_and_until_they_are_released() -> None:
    scene = Scene()
    assert scene.num_held("anna", 200) == 9
    assert scene.holds("0", "anna")
    assert not scene.holds("another", "anna")
    for _ in range(2):
        scene.places.release("0")
    assert scene.num_held("anna", 200) == 1


def test_a_place_of_a_job_that_never_comes_is_free_again_after_a_while() -> None:
    scene = Scene()
    assert scene.num_held("anna", 9) == 9
    scene.now += HOLD_S - 1
    assert not scene.holds("another", "anna")
    scene.now += 1
    assert scene.num_held("anna", 200) == 9


def test_a_job_with_a_place_is_taken_although_all_are_held_and_then_counts_once() -> None:
    scene = Scene()
    scene.num_held("anna", 9)
    with pytest.raises(Overloaded), scene.places.take("another", "anna"):
        pass
    with scene.places.take("0", "anna"):
        assert scene.places.is_taking("0")
        assert not scene.holds("another", "anna")
    assert not scene.places.is_taking("0")
    assert scene.num_held("anna", 200) == 1


@pytest.mark.parametrize(("settings", "num"), [({}, 7), ({"max_places_per_key": 2}, 2)])
def test_one_key_takes_its_part_of_the_places_while_another_sends_work(settings: dict[str, int], num: int) -> None:
    scene = Scene(**settings)
    assert scene.holds("otto's", "otto")
    assert scene.num_held("anna", 200) == num
    with pytest.raises(KeyPlacesTaken, match=rf"^This API key has {num} places .*\(jobs.max_places_per_key\)"):
        scene.places.hold("another", "anna")
    assert scene.num_held("otto", 1) == 1
    scene.now += ACTIVE_S
    assert scene.num_held("anna", 200) == 9


def test_a_client_for_whom_the_store_is_full_is_refused_for_a_moment_and_the_others_are_not() -> None:
    scene = Scene()
    with pytest.raises(StoreFull), scene.places.take("job", "anna"):
        raise StoreFull("full")
    with pytest.raises(StoreFull, match="full"):
        scene.places.hold("job", "anna")
    assert scene.holds("otto's", "otto")
    scene.now += STORE_FULL_S
    assert scene.holds("job", "anna")


async def num_reserved(service: Replica, client: str, num_requests: int) -> int:
    ends = await asyncio.gather(
        *(service.reserve(f"{client} {number}", client) for number in range(num_requests)), return_exceptions=True
    )
    assert all(isinstance(end, (int, Overloaded)) for end in ends)
    return sum(isinstance(end, int) for end in ends)


@async_test
async def test_of_200_requests_as_many_get_a_place_as_there_are_and_keep_it_when_they_submit(stores: Stores) -> None:
    async with replica_on(stores.open(), FakeEditor(gate=asyncio.Semaphore(0)), **NINE) as service:
        assert await num_reserved(service, "anna", 200) == 9
        for number in range(9):
            with pytest.raises(Overloaded):
                await service.submit(spec("intruder", client="anna"), [(picture(),)])
            await service.submit(spec(f"anna {number}", client="anna"), [(picture(),)])
        assert await num_reserved(service, "otto", 1) == 0
        await service.cancel("anna 0")
        assert await num_reserved(service, "anna", 200) == 0  # otto has sent a request
        assert await num_reserved(service, "otto", 200) == 1
        await service.release("otto 0")
        assert await num_reserved(service, "otto", 200) == 1


@async_test
async def test_while_many_places_are_free_a_few_jobs_need_no_reservation(stores: Stores) -> None:
    settings: dict[str, Any] = {"max_active_jobs": 4, "max_queued_jobs": 16, "max_places_per_key": 8}
    async with replica_on(stores.open(), FakeEditor(gate=asyncio.Semaphore(0)), **settings) as service:
        assert [await service.reserve(f"anna {number}", "anna") for number in range(5)] == [4, 4, 4, 4, 3]
        for number in range(3):
            await service.submit(spec(f"unreserved {number}", client="anna"), [(picture(),)])
        assert await service.reserve("anna", "anna") == 2
        assert await service.reserve("otto", "otto") == 1  # of 7 for one key while another one is active
        assert await service.reserve("anna", "anna") == 0


@async_test
async def test_a_retried_job_needs_a_place(stores: Stores) -> None:
    editor = FakeEditor(problem=EditFailed("broken"))
    async with replica_on(stores.open(), editor, max_active_jobs=1, max_queued_jobs=0) as service:
        await service.submit(spec("job"), [(picture(),)])
        await state(service, "job")
        await service.reserve("another", "")
        with pytest.raises(Overloaded):
            await service.retry("job", "call")
        await service.release("another")
        await service.retry("job", "call")
