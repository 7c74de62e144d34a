"""The Store contract for both kinds of store: each open job has an owner with a lease."""

import asyncio

from serve_app.edits.job import JobState
from tests.jobs.conftest import Stores, async_test
from tests.jobs.samples import SETS, SHORT_S, add, end, outcome, record


@async_test
async def test_a_beat_returns_the_owners_open_jobs_and_their_states(stores: Stores) -> None:
    store = stores.open()
    for name, owner in (("waiting", "me"), ("running", "me"), ("notified", "me"), ("ended", "me"), ("theirs", "you")):
        await add(store, name, owner=owner, webhook=name == "notified")
    assert await store.update("running", "me", record(JobState.IN_PROGRESS))
    assert await store.update("notified", "me", record(JobState.FAILED, webhook=True, ended_at=stores.now))
    await end(store, stores.now, "ended")
    mine = {"waiting": JobState.IN_QUEUE, "running": JobState.IN_PROGRESS, "notified": JobState.FAILED}
    assert await store.beat("me", 60) == mine
    assert await store.beat("you", 60) == {"theirs": JobState.IN_QUEUE}
    assert await store.open_jobs() == {**mine, "theirs": JobState.IN_QUEUE}


@async_test
async def test_the_jobs_of_one_that_never_beat_are_adopted(stores: Stores) -> None:
    store = stores.open()
    await add(store)
    assert await store.adopt("heir") == ["job"]
    assert await store.beat("heir", 60) == {"job": JobState.IN_QUEUE}
    assert await store.beat("me", 60) == {}


@async_test
async def test_the_jobs_of_the_living_are_not(stores: Stores) -> None:
    store = stores.open()
    await store.beat("me", 60)
    await add(store)
    assert await store.adopt("heir") == []
    assert await store.beat("me", 60) == {"job": JobState.IN_QUEUE}


@async_test
async def test_the_jobs_of_one_whose_lease_is_over_are_adopted(stores: Stores) -> None:
    store = stores.open()
    await store.beat("me", SHORT_S)
    await add(store)
    await stores.let_pass(SHORT_S * 1.5)
    assert await store.adopt("heir") == ["job"]


@async_test
async def test_a_beat_renews_the_lease(stores: Stores) -> None:
    store = stores.open()
    await store.beat("me", SHORT_S)
    await store.beat("me", 60)
    await add(store)
    await stores.let_pass(SHORT_S * 1.5)
    assert await store.adopt("heir") == []


@async_test
async def test_what_the_former_owner_writes_is_refused(stores: Stores) -> None:
    store = stores.open()
    await add(store)
    await store.add_outcome("job", "me", 0, outcome(b"before"))
    await store.adopt("heir")
    assert not await store.add_outcome("job", "me", 1, outcome(b"after"))
    assert not await store.update("job", "me", record(JobState.COMPLETED, ended_at=stores.now))
    assert await store.add_outcome("job", "heir", 1, outcome(b"of the heir"))
    assert await store.update("job", "heir", record(JobState.COMPLETED, ended_at=stores.now))
    assert await store.outcomes("job") == {0: outcome(b"before"), 1: outcome(b"of the heir")}


@async_test
async def test_open_jobs_are_adopted_as_they_are_and_others_not(stores: Stores) -> None:
    store = stores.open()
    await add(store, "ended")
    await end(store, stores.now, "ended")
    await add(store, "notified", webhook=True)
    await store.cancel("notified", stores.now)
    await add(store, "running")
    await store.update("running", "me", record(JobState.IN_PROGRESS))
    assert sorted(await store.adopt("heir")) == ["notified", "running"]
    assert await store.beat("heir", 60) == {"running": JobState.IN_PROGRESS, "notified": JobState.CANCELLED}
    assert await store.record("running") == record(JobState.IN_PROGRESS)


@async_test
async def test_no_owner_adopts_its_own_jobs(stores: Stores) -> None:
    store = stores.open()
    await add(store)
    assert await store.adopt("me") == []
    assert await store.adopt("heir") == ["job"]
    assert await store.adopt("heir") == []


@async_test
async def test_of_many_heirs_each_job_goes_to_one(stores: Stores) -> None:
    heirs = [f"heir {number}" for number in range(8)]
    several = {heir: stores.open() for heir in heirs}
    for heir, store in several.items():
        await store.beat(heir, 60)
    jobs = [await add(several["heir 0"], f"job {number}", sets=SETS[1:]) for number in range(20)]
    shares = await asyncio.gather(*(store.adopt(heir) for heir, store in several.items()))
    assert sorted(job for share in shares for job in share) == sorted(jobs)
    for (heir, store), share in zip(several.items(), shares, strict=True):
        assert sorted(await store.beat(heir, 60)) == sorted(share)


@async_test
async def test_an_owner_that_writes_while_a_job_is_adopted_does_not_get_it_back(stores: Stores) -> None:
    store, heirs = stores.open(), stores.open()
    jobs = [await add(store, f"job {number}", sets=SETS[1:]) for number in range(20)]
    writing = [store.update(job_id, "me", record(JobState.IN_PROGRESS)) for job_id in jobs]
    adopted, _ = await asyncio.gather(heirs.adopt("heir"), asyncio.gather(*writing))
    assert sorted(adopted) == sorted(jobs)
    assert sorted(await heirs.beat("heir", 60)) == sorted(jobs)
