"""The Store contract for both kinds of store: jobs are changed, ended and opened again."""

import asyncio
from dataclasses import replace

import pytest

from serve_app.edits.job import JobRecord, JobState
from tests.jobs.conftest import Stores, async_test
from tests.jobs.samples import FINAL, KEY, SETS, SHORT_S, add, end, is_kept, outcome, record, same_pictures, spec

RETRYABLE = [JobState.FAILED, JobState.TIMED_OUT]


@async_test
async def test_the_owner_replaces_the_record(stores: Stores) -> None:
    store = stores.open()
    await add(store)
    running = replace(record(JobState.IN_PROGRESS), started_at=stores.now, error="none yet", num_retries=2)
    assert await store.update("job", "me", running)
    assert await store.record("job") == running
    assert await store.open_jobs() == {"job": JobState.IN_PROGRESS}
    assert await store.spec("job") == spec()


@async_test
async def test_a_stranger_cannot_replace_the_record(stores: Stores) -> None:
    store = stores.open()
    await add(store)
    assert not await store.update("job", "stranger", record(JobState.COMPLETED, ended_at=stores.now))
    assert await store.record("job") == record()


@async_test
async def test_the_last_picture_is_stored_with_the_end_once(stores: Stores) -> None:
    store, ended = stores.open(), record(JobState.COMPLETED, ended_at=stores.now)
    await add(store)
    await store.add_outcome("job", "me", 0, outcome(b"first"))
    assert not await store.complete("job", "stranger", ended, 1, outcome(b"of a stranger"))
    assert await store.record("job") == record()
    assert await store.outcomes("job") == {0: outcome(b"first")}
    assert await store.complete("job", "me", ended, 1, outcome(b"last"))
    assert await store.record("job") == ended
    assert await store.outcomes("job") == {0: outcome(b"first"), 1: outcome(b"last")}
    # As when the first answer was lost.
    assert not await store.complete("job", "me", ended, 1, outcome(b"again"))
    assert await store.outcomes("job") == {0: outcome(b"first"), 1: outcome(b"last")}


@async_test
async def test_a_cancelled_job_is_not_completed(stores: Stores) -> None:
    store = stores.open()
    await add(store)
    await store.cancel("job", stores.now)
    assert not await store.complete("job", "me", record(JobState.COMPLETED, ended_at=stores.now), 0, outcome())
    assert await store.record("job") == record(JobState.CANCELLED, ended_at=stores.now)
    assert not await store.outcomes("job")


@async_test
@pytest.mark.parametrize("state", FINAL)
async def test_a_job_that_is_no_longer_open_stays_as_it_is(stores: Stores, state: JobState) -> None:
    store = stores.open()
    await add(store)
    await end(store, stores.now, state=state)
    assert await store.open_jobs() == {}
    assert not await store.update("job", "me", replace(record(state, ended_at=stores.now), error="another"))
    assert await store.record("job") == record(state, ended_at=stores.now)


@async_test
async def test_a_job_whose_webhook_is_pending_is_open_until_that_is_notified(stores: Stores) -> None:
    store = stores.open()
    await add(store, webhook=True, retention_s=SHORT_S)
    pending = record(JobState.COMPLETED, webhook=True, ended_at=stores.now)
    assert await store.update("job", "me", pending)
    await stores.let_pass(SHORT_S * 1.5)
    assert await store.open_jobs() == {"job": JobState.COMPLETED}
    assert await is_kept(store)
    notified = replace(pending, webhook_pending=False)
    assert await store.update("job", "me", notified)
    assert await store.open_jobs() == {}


@async_test
@pytest.mark.parametrize("state", [JobState.IN_PROGRESS, JobState.COMPLETED])
async def test_a_job_ends_once_even_while_its_webhook_is_pending(stores: Stores, state: JobState) -> None:
    store = stores.open()
    await add(store, webhook=True)
    assert await store.cancel("job", stores.now)
    assert not await store.update("job", "me", record(state, webhook=True, ended_at=stores.now + 1))
    kept = await store.record("job")
    assert kept == record(JobState.CANCELLED, webhook=True, ended_at=stores.now)


@async_test
@pytest.mark.parametrize("state", [JobState.IN_QUEUE, JobState.IN_PROGRESS])
async def test_any_store_can_cancel_a_job_that_has_not_ended(stores: Stores, state: JobState) -> None:
    store = stores.open()
    await add(store)
    running = replace(record(state), started_at=stores.now, num_retries=1)
    assert await store.update("job", "me", running)
    assert await stores.open().cancel("job", stores.now + 0.1)
    ended = replace(running, state=JobState.CANCELLED, ended_at=stores.now + 0.1)
    assert await store.record("job") == ended
    assert await store.open_jobs() == {}
    assert not await store.update("job", "me", record(JobState.COMPLETED, ended_at=stores.now))
    assert not await store.add_outcome("job", "me", 0, outcome())


@async_test
@pytest.mark.parametrize("webhook", [False, True])
@pytest.mark.parametrize("state", FINAL)
async def test_cancelling_a_job_that_has_ended_changes_nothing(stores: Stores, state: JobState, webhook: bool) -> None:
    store = stores.open()
    await add(store, webhook=True)
    ended = record(state, webhook=webhook, ended_at=stores.now)
    assert await store.update("job", "me", ended)
    assert not await store.cancel("job", stores.now + 1)
    assert await store.record("job") == ended


@async_test
async def test_retention_begins_with_the_cancelling(stores: Stores) -> None:
    store = stores.open()
    await add(store, "kept", retention_s=60)
    await add(store, "gone", retention_s=60)
    assert await store.cancel("kept", stores.now - 50)
    assert await store.cancel("gone", stores.now - 70)
    assert await is_kept(store, "kept")
    assert not await is_kept(store, "gone")


@async_test
async def test_a_pending_webhook_keeps_a_cancelled_job_open(stores: Stores) -> None:
    store = stores.open()
    await add(store, webhook=True, retention_s=SHORT_S)
    assert await store.cancel("job", stores.now)
    cancelled = record(JobState.CANCELLED, webhook=True, ended_at=stores.now)
    assert await store.record("job") == cancelled
    await stores.let_pass(SHORT_S * 1.5)
    await store.sweep()
    assert await store.beat("me", 60) == {"job": JobState.CANCELLED}
    assert await is_kept(store)
    # Its owner notifies the webhook, and by then the job has been kept long enough.
    assert await store.update("job", "me", replace(cancelled, webhook_pending=False))
    assert not await is_kept(store)


@async_test
async def test_of_many_who_cancel_at_once_one_did_it(stores: Stores) -> None:
    first, second = stores.open(), stores.open()
    await add(first)
    done = await asyncio.gather(*((first, second)[number % 2].cancel("job", stores.now) for number in range(20)))
    assert sorted(done) == [False] * 19 + [True]


@async_test
async def test_a_job_is_either_completed_or_cancelled(stores: Stores) -> None:
    first, second = stores.open(), stores.open()
    for number in range(20):
        job_id = await add(first, f"job {number}", webhook=number % 4 > 1)
        completed = replace(record(JobState.COMPLETED, ended_at=stores.now), webhook_pending=number % 4 > 1)
        ends = [first.update(job_id, "me", completed), second.cancel(job_id, stores.now)]
        updated, cancelled = await asyncio.gather(*(ends if number % 2 else reversed(ends)))
        assert updated != cancelled


@async_test
@pytest.mark.parametrize("state", JobState)
async def test_only_jobs_of_a_retryable_state_are_reopened(stores: Stores, state: JobState) -> None:
    store = stores.open()
    await add(store)
    before = record(state, ended_at=stores.now if state.final else None)
    assert await store.update("job", "me", before)
    again = JobRecord(JobState.IN_QUEUE, stores.now, num_retries=1)
    assert await store.reopen("job", "other", again) is (state in RETRYABLE)
    assert await store.record("job") == (again if state in RETRYABLE else before)


@async_test
@pytest.mark.parametrize("webhook", [False, True])
@pytest.mark.parametrize("state", RETRYABLE)
async def test_a_reopened_job_has_no_outcomes(stores: Stores, state: JobState, webhook: bool) -> None:
    store = stores.open()
    await add(store, webhook=True)
    await store.add_outcome("job", "me", 0, outcome())
    assert await store.update("job", "me", record(state, webhook=webhook, ended_at=stores.now))
    assert await store.reopen("job", "me", record())
    assert await store.outcomes("job") == {}
    assert await store.open_jobs() == {"job": JobState.IN_QUEUE}
    assert same_pictures(await store.pictures("job"), SETS)


@async_test
async def test_a_reopened_job_changes_hands(stores: Stores) -> None:
    store = stores.open()
    await add(store)
    await end(store, stores.now, state=JobState.FAILED)
    assert await store.reopen("job", "other", record())
    assert await store.beat("me", 60) == {}
    assert await store.beat("other", 60) == {"job": JobState.IN_QUEUE}
    assert not await store.update("job", "me", record(JobState.IN_PROGRESS))
    assert not await store.add_outcome("job", "me", 0, outcome())
    assert await store.add_outcome("job", "other", 0, outcome())
    assert await store.update("job", "other", record(JobState.IN_PROGRESS))


@async_test
async def test_a_reopened_job_does_not_expire_nor_does_its_key(stores: Stores) -> None:
    store = stores.open()
    await add(store, key=KEY, retention_s=SHORT_S * 5)
    await end(store, stores.now, state=JobState.FAILED)
    assert await store.reopen("job", "me", record())
    await stores.let_pass(SHORT_S * 6)
    await store.sweep()
    assert await is_kept(store)
    assert await add(store, "second", key=KEY) == "job"


@async_test
async def test_of_many_who_reopen_at_once_one_did_it(stores: Stores) -> None:
    first, second = stores.open(), stores.open()
    await add(first)
    await end(first, stores.now, state=JobState.FAILED)
    tries = ((first, second)[number % 2].reopen("job", f"owner {number}", record()) for number in range(20))
    done = await asyncio.gather(*tries)
    assert sorted(done) == [False] * 19 + [True]
    assert await first.beat(f"owner {done.index(True)}", 60) == {"job": JobState.IN_QUEUE}
