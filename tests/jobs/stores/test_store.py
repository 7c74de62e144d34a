"""The Store contract for both kinds of store: jobs are kept."""

import asyncio
from dataclasses import replace

import pytest

from serve_app.edits.job import JobState, RepeatKey
from serve_app.errors import RepeatKeyConflict
from tests.jobs.conftest import Stores, async_test
from tests.jobs.samples import FINAL, KEY, SETS, SHORT_S, add, end, is_kept, noise, outcome, record, same_pictures, spec


@async_test
async def test_a_job_is_there_for_all_stores_with_everything(stores: Stores) -> None:
    job = spec(key=KEY, webhook="https://example.org/hook")
    first = record(webhook=True)
    assert await stores.open().add(job, SETS, first, "me") == "job"
    other = stores.open()
    assert await other.spec("job") == job
    assert await other.record("job") == first
    assert same_pictures(await other.pictures("job"), SETS)
    assert await other.outcomes("job") == {}
    assert await other.open_jobs() == {"job": JobState.IN_QUEUE}


@async_test
async def test_an_unknown_job_has_nothing_and_takes_nothing(stores: Stores) -> None:
    store = stores.open()
    assert await store.spec("job") is None
    assert await store.record("job") is None
    assert await store.pictures("job") == ()
    assert await store.outcomes("job") == {}
    assert not await store.add_outcome("job", "me", 0, outcome())
    assert not await store.update("job", "me", record())
    assert not await store.cancel("job", stores.now)
    assert not await store.reopen("job", "me", record())
    assert await store.open_jobs() == {}
    assert await stores.num_left() == 0


@async_test
async def test_a_known_id_changes_nothing(stores: Stores) -> None:
    store = stores.open()
    await add(store)
    assert await store.update("job", "me", record(JobState.IN_PROGRESS))
    before = await stores.num_left()
    assert await add(store, owner="other", sets=((noise(9),),)) == "job"
    assert await store.record("job") == record(JobState.IN_PROGRESS)
    assert same_pictures(await store.pictures("job"), SETS)
    assert await store.beat("other", 60) == {}
    # The lease is new; nothing else is.
    assert await stores.num_left() == before + 1


@async_test
async def test_a_known_id_with_another_fingerprint_is_refused(stores: Stores) -> None:
    store = stores.open()
    await add(store, key=KEY)
    with pytest.raises(RepeatKeyConflict):
        await add(store, key=RepeatKey("another key", "another fingerprint"))


@async_test
async def test_a_known_id_goes_before_a_known_key(stores: Stores) -> None:
    store = stores.open()
    other = replace(KEY, key="order-18")
    await add(store, "zebra", key=KEY)
    await add(store, "ape", key=other)
    assert await add(store, "zebra", key=other) == "zebra"
    assert await add(store, "ape", key=KEY) == "ape"


@async_test
async def test_a_repeated_request_is_the_job_that_it_was_first(stores: Stores) -> None:
    store = stores.open()
    await add(store, "first", key=KEY)
    before = await stores.num_left()
    assert await add(stores.open(), "second", key=KEY) == "first"
    assert await store.record("second") is None
    assert await stores.num_left() == before


@async_test
async def test_another_request_with_the_key_is_refused_and_not_stored(stores: Stores) -> None:
    store = stores.open()
    await add(store, "first", key=KEY)
    before = await stores.num_left()
    with pytest.raises(RepeatKeyConflict):
        await add(store, "second", key=replace(KEY, fingerprint="another"))
    assert await store.record("second") is None
    assert await stores.num_left() == before


@async_test
async def test_jobs_with_other_keys_or_none_are_jobs_of_their_own(stores: Stores) -> None:
    store = stores.open()
    keys = [KEY, replace(KEY, key="order-18"), None, None]
    ids = [await add(store, f"job {number}", key=key) for number, key in enumerate(keys)]
    assert ids == ["job 0", "job 1", "job 2", "job 3"]


@async_test
async def test_of_many_requests_with_one_key_at_once_one_is_stored(stores: Stores) -> None:
    first, second = stores.open(), stores.open()
    adding = [add((first, second)[number % 2], f"job {number}", key=KEY) for number in range(20)]
    ids = set(await asyncio.gather(*adding))
    assert len(ids) == 1
    assert set(await first.open_jobs()) == ids
    # Stored once: no picture or other part of the repeated requests remains.
    await add(first, "alone")
    num_left = await stores.num_left()
    await add(first, "alone, too")
    assert await stores.num_left() - num_left == 2


@async_test
async def test_a_key_stays_bound_as_long_as_its_ended_job_is_kept(stores: Stores) -> None:
    store = stores.open()
    await add(store, "first", key=KEY)
    await end(store, stores.now, "first")
    assert await add(store, "second", key=KEY) == "first"


@async_test
async def test_a_key_whose_job_has_expired_is_free(stores: Stores) -> None:
    store = stores.open()
    await add(store, "first", key=KEY, retention_s=SHORT_S)
    await end(store, stores.now, "first")
    await stores.let_pass(SHORT_S * 1.5)
    anew = replace(KEY, fingerprint="another")
    assert await add(store, "second", key=anew) == "second"
    assert await add(store, "third", key=anew) == "second"


@async_test
async def test_an_id_whose_job_has_expired_is_free(stores: Stores) -> None:
    store = stores.open()
    await add(store, retention_s=SHORT_S)
    await store.add_outcome("job", "me", 0, outcome())
    await end(store, stores.now)
    await stores.let_pass(SHORT_S * 1.5)
    assert await add(store) == "job"
    assert await store.record("job") == record()
    assert await store.outcomes("job") == {}


@async_test
async def test_outcomes_are_kept_by_their_index(stores: Stores) -> None:
    store = stores.open()
    await add(store)
    assert await store.add_outcome("job", "me", 11, outcome(b"later"))
    assert await store.update("job", "me", record(JobState.IN_PROGRESS))
    assert await store.add_outcome("job", "me", 0, outcome(b"first"))
    await end(store, stores.now)
    assert await stores.open().outcomes("job") == {0: outcome(b"first"), 11: outcome(b"later")}


@async_test
async def test_the_last_outcome_of_an_index_holds(stores: Stores) -> None:
    store = stores.open()
    await add(store)
    assert await store.add_outcome("job", "me", 0, outcome(b"one"))
    assert await store.add_outcome("job", "me", 0, outcome(b"two"))
    assert await store.outcomes("job") == {0: outcome(b"two")}


@async_test
async def test_a_stranger_cannot_add_an_outcome(stores: Stores) -> None:
    store = stores.open()
    await add(store)
    assert not await store.add_outcome("job", "stranger", 0, outcome())
    assert await store.outcomes("job") == {}


@async_test
@pytest.mark.parametrize("webhook", [False, True])
@pytest.mark.parametrize("state", FINAL)
async def test_a_job_that_has_ended_takes_no_outcome(stores: Stores, state: JobState, webhook: bool) -> None:
    store = stores.open()
    await add(store, webhook=True)
    assert await store.update("job", "me", record(state, webhook=webhook, ended_at=stores.now))
    assert not await store.add_outcome("job", "me", 0, outcome())
    assert await store.outcomes("job") == {}


@async_test
async def test_retention_counts_from_the_end_and_not_from_the_update(stores: Stores) -> None:
    store = stores.open()
    await add(store, "kept", retention_s=60)
    await add(store, "gone", retention_s=60)
    await end(store, stores.now - 50, "kept")
    await end(store, stores.now - 70, "gone")
    assert await is_kept(store, "kept")
    assert not await is_kept(store, "gone")


@async_test
async def test_an_expired_job_is_gone_with_all_its_parts(stores: Stores) -> None:
    store = stores.open()
    await add(store, key=KEY, retention_s=SHORT_S)
    await store.add_outcome("job", "me", 0, outcome())
    await end(store, stores.now)
    await stores.let_pass(SHORT_S * 1.5)
    assert not await is_kept(store)
    assert await store.outcomes("job") == {}
    assert not await store.reopen("job", "me", record())
    assert not await store.cancel("job", stores.now)
    await store.sweep()
    assert await stores.num_left() == 0


@async_test
async def test_sweeping_leaves_what_is_kept(stores: Stores) -> None:
    store = stores.open()
    await add(store, "open", retention_s=SHORT_S)
    await add(store, "kept", retention_s=60)
    await store.add_outcome("kept", "me", 0, outcome())
    await end(store, stores.now, "kept")
    await store.beat("me", 60)
    await stores.let_pass(SHORT_S * 1.5)
    await store.sweep()
    assert await is_kept(store, "open")
    assert await is_kept(store, "kept")
    assert await store.outcomes("kept") == {0: outcome()}
    assert await store.adopt("other") == []


@async_test
async def test_a_lease_that_is_over_leaves_nothing(stores: Stores) -> None:
    store = stores.open()
    await store.beat("me", SHORT_S)
    assert await stores.num_left() == 1
    await stores.let_pass(SHORT_S * 1.5)
    await store.sweep()
    assert await stores.num_left() == 0


@async_test
async def test_hundreds_may_read_at_once(stores: Stores) -> None:
    store = stores.open()
    await add(store)
    assert await asyncio.gather(*(store.record("job") for _ in range(400))) == [record()] * 400


@async_test
async def test_a_job_that_ends_without_a_time_is_refused(stores: Stores) -> None:
    store = stores.open()
    await add(store)
    with pytest.raises(ValueError, match="ended_at is None"):
        await store.update("job", "me", record(JobState.COMPLETED))
    assert await store.record("job") == record()


@async_test
async def test_a_store_that_was_not_used_can_be_closed(stores: Stores) -> None:
    stores.open()
