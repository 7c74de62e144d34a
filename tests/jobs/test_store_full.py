"""A store that holds as many bytes as it may: which jobs are refused, and when they are accepted again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serve_app.edits.job import JobSpec, JobState, Policy, RepeatKey
from serve_app.errors import EditFailed, StoreFull
from tests.fakes import FakeEditor, picture
from tests.jobs.conftest import Stores, async_test
from tests.jobs.replicas import Replica, replica_on, spec, state

KEY = RepeatKey("key", "fingerprint")
PICTURE_BYTES = 2 * 256 * 256 * 3
"""Of each job's only set."""


@asynccontextmanager
async def stalled(stores: Stores, **settings: Any) -> AsyncIterator[Replica]:
    """A replica whose jobs never end by themselves."""
    async with replica_on(stores.open(), FakeEditor(gate=asyncio.Semaphore(0)), **settings) as service:
        yield service


async def submit(service: Replica, job: JobSpec) -> str:
    return await service.submit(job, [(picture(256, 256),)])


@async_test
async def test_a_full_store_refuses_new_jobs_and_finds_known_ones(stores: Stores) -> None:
    async with stalled(stores, max_store_bytes=3 * PICTURE_BYTES) as service:
        assert await submit(service, spec("first", repeat_key=KEY)) == "first"
        assert await submit(service, spec("second")) == "second"
        with pytest.raises(StoreFull) as refused:
            await submit(service, spec("third"))
        assert (refused.value.status, refused.value.code) == (429, "store_full")
        assert await submit(service, spec("again", repeat_key=KEY)) == "first"
        assert await submit(service, spec("second")) == "second"
        await service.cancel("second")
        assert await submit(service, spec("third")) == "third"
        assert await service.fault() is None


@async_test
async def test_a_refused_job_takes_no_place_in_the_queue(stores: Stores) -> None:
    async with stalled(stores, max_store_bytes=1, max_active_jobs=1, max_queued_jobs=0) as service:
        with pytest.raises(StoreFull):
            await submit(service, spec("job", client="anna"))
        with pytest.raises(StoreFull):
            await service.reserve("job", "anna")
        await service.reserve("job", "otto")
        assert (await service.counts()).in_queue == 0


@async_test
async def test_a_client_that_fills_its_share_leaves_the_others_theirs(stores: Stores) -> None:
    async with stalled(stores, max_store_bytes_per_key=2 * PICTURE_BYTES) as service:
        assert await submit(service, spec("a 1", client="anna")) == "a 1"
        with pytest.raises(StoreFull, match="max_store_bytes_per_key"):
            await submit(service, spec("a 2", client="anna"))
        assert await submit(service, spec("o 1", client="otto")) == "o 1"


@async_test
async def test_a_client_that_cancels_its_jobs_at_once_fills_nothing(stores: Stores) -> None:
    async with stalled(stores, max_store_bytes=3 * PICTURE_BYTES) as service:
        for number in range(40):
            await submit(service, spec(f"job {number}"))
            assert (await service.cancel(f"job {number}")).state is JobState.CANCELLED


@async_test
async def test_jobs_that_time_out_are_kept_for_a_retry_and_therefore_bounded(stores: Stores) -> None:
    async with stalled(stores, max_store_bytes=5 * PICTURE_BYTES, max_active_jobs=1) as service:
        await submit(service, spec("active"))
        for number in range(3):
            await submit(service, spec(f"late {number}", policy=Policy(ttl_s=0)))
            assert await state(service, f"late {number}") is JobState.TIMED_OUT
        with pytest.raises(StoreFull):
            await submit(service, spec("late 3", policy=Policy(ttl_s=0)))


@async_test
async def test_a_failed_job_is_drawn_again_although_the_store_is_full(stores: Stores) -> None:
    editor = FakeEditor(problem=EditFailed("broken"))
    async with replica_on(stores.open(), editor, max_store_bytes=2 * PICTURE_BYTES) as service:
        await submit(service, spec("job"))
        assert await state(service, "job") is JobState.FAILED
        with pytest.raises(StoreFull):
            await submit(service, spec("other"))
        editor.problem = None
        await service.retry("job", "call")
        await service.wait("job", 20)
        job = await service.read("job")
        assert (job.record.state, len(job.outcomes)) == (JobState.COMPLETED, 1)
        assert await submit(service, spec("other")) == "other"
