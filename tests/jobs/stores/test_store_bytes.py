"""The Store contract for both kinds of store: what is not needed is deleted, and what is held is bounded."""

import asyncio

import pytest

from serve_app.edits.job import JobRecord, JobState, RepeatKey
from serve_app.errors import StoreFull
from serve_app.jobs.stores.codec import dump_outcome, dump_spec
from serve_app.jobs.stores.store import ByteLimits, Store
from tests.jobs.conftest import Stores, async_test
from tests.jobs.samples import FINAL, KEY, SETS, SHORT_S, add, end, num_bytes, outcome, record, same_pictures, spec

JOB_BYTES = num_bytes(spec("job 0"))
NO_MORE = [JobState.COMPLETED, JobState.CANCELLED]


async def fits(store: Store, job_id: str, total: int, *, client: str = "", per_client: int = 2**40) -> bool:
    """Whether a job is stored while no more than `total` bytes may be held."""
    try:
        return await add(store, job_id, client=client, limits=ByteLimits(total, per_client)) == job_id
    except StoreFull:
        assert await store.record(job_id) is None
        return False


@async_test
@pytest.mark.parametrize("webhook", [False, True])
@pytest.mark.parametrize("state", FINAL)
async def test_pictures_are_deleted_with_an_end_after_which_they_are_not_needed(
    stores: Stores, state: JobState, webhook: bool
) -> None:
    store = stores.open()
    await add(store, webhook=True)
    await store.add_outcome("job", "me", 0, outcome())
    assert await store.update("job", "me", record(state, webhook=webhook, ended_at=stores.now))
    if state in NO_MORE:
        assert await store.pictures("job") == ()
    else:
        assert same_pictures(await store.pictures("job"), SETS)
    assert await store.outcomes("job") == {0: outcome()}
    assert await store.spec("job") == spec()


@async_test
async def test_pictures_of_a_cancelled_job_are_deleted(stores: Stores) -> None:
    store = stores.open()
    await add(store)
    assert await store.cancel("job", stores.now)
    assert await store.pictures("job") == ()


@async_test
async def test_a_job_that_was_retried_and_completed_has_no_pictures(stores: Stores) -> None:
    store = stores.open()
    await add(store)
    await end(store, stores.now, state=JobState.FAILED)
    assert await store.reopen("job", "me", JobRecord(JobState.IN_QUEUE, stores.now, num_retries=1))
    assert same_pictures(await store.pictures("job"), SETS)
    await end(store, stores.now)
    assert await store.pictures("job") == ()


@async_test
async def test_the_job_that_would_exceed_the_limit_is_refused_and_leaves_nothing(stores: Stores) -> None:
    store = stores.open()
    assert await fits(store, "job 0", JOB_BYTES)
    before = await stores.num_left()
    assert not await fits(store, "job 1", 2 * JOB_BYTES - 1)
    assert await stores.num_left() == before
    assert await fits(store, "job 1", 2 * JOB_BYTES)


@async_test
async def test_a_known_job_is_found_in_a_full_store(stores: Stores) -> None:
    store, full = stores.open(), ByteLimits(1, 1)
    await add(store, "first", key=KEY)
    assert await add(store, "first", key=KEY, limits=full) == "first"
    assert await add(store, "again", key=KEY, limits=full) == "first"
    with pytest.raises(StoreFull, match="max_store_bytes"):
        await add(store, "other", key=RepeatKey("other", ""), limits=full)


@async_test
async def test_one_client_cannot_take_the_share_of_another(stores: Stores) -> None:
    store = stores.open()
    share = 2 * num_bytes(spec("job 0", client="anna"))
    for job_id in ("job 0", "job 1"):
        assert await fits(store, job_id, 2**40, client="anna", per_client=share)
    assert not await fits(store, "job 2", 2**40, client="anna", per_client=share)
    assert await fits(store, "job 2", 2**40, client="otto", per_client=share)
    assert not await fits(store, "job 3", 2**40, client="anna", per_client=share)
    await store.cancel("job 0", stores.now)
    left = len(dump_spec(spec("job 0", client="anna")))
    assert not await fits(store, "job 3", 2**40, client="anna", per_client=share + left - 1)
    assert await fits(store, "job 3", 2**40, client="anna", per_client=share + left)


@async_test
async def test_jobs_that_are_cancelled_at_once_do_not_fill_the_store(stores: Stores) -> None:
    store = stores.open()
    for number in range(50):
        assert await fits(store, f"job {number}", 8 * JOB_BYTES)
        assert await store.cancel(f"job {number}", stores.now)


@async_test
@pytest.mark.parametrize("state", [JobState.FAILED, JobState.TIMED_OUT])
async def test_jobs_that_may_be_retried_fill_it_until_they_expire(stores: Stores, state: JobState) -> None:
    store = stores.open()
    await add(store, "job 0", retention_s=SHORT_S)
    await end(store, stores.now, "job 0", state=state)
    assert not await fits(store, "job 1", JOB_BYTES + 1)
    await stores.let_pass(SHORT_S * 1.5)
    assert await fits(store, "job 1", JOB_BYTES)


@async_test
async def test_outcomes_count_until_they_are_deleted(stores: Stores) -> None:
    store = stores.open()
    await add(store, "job 0")
    drawn = outcome(bytes(100_000))
    for _ in range(2):  # the second replaces the first
        assert await store.add_outcome("job 0", "me", 0, drawn)
    held = JOB_BYTES + sum(map(len, dump_outcome(drawn)))
    assert not await fits(store, "job 1", held + JOB_BYTES - 1)
    assert await fits(store, "job 1", held + JOB_BYTES)
    await end(store, stores.now, "job 0", state=JobState.FAILED)
    assert await store.reopen("job 0", "me", record())
    assert not await fits(store, "job 2", 3 * JOB_BYTES - 1)
    assert await fits(store, "job 2", 3 * JOB_BYTES)


@async_test
async def test_a_restart_and_another_replica_know_what_is_held(stores: Stores) -> None:
    await add(stores.open(), "job 0")
    await stores.close()
    stores.opened.clear()
    first, second = stores.open(), stores.open()
    assert not await fits(second, "job 1", 2 * JOB_BYTES - 1)
    assert await fits(second, "job 1", 2 * JOB_BYTES)
    assert not await fits(first, "job 2", 3 * JOB_BYTES - 1)


@async_test
async def test_of_many_jobs_at_once_as_many_are_stored_as_fit(stores: Stores) -> None:
    several = stores.open(), stores.open()
    adding = [fits(several[number % 2], f"job {number:02}", 5 * num_bytes(spec("job 00"))) for number in range(20)]
    assert sum(await asyncio.gather(*adding)) == 5
