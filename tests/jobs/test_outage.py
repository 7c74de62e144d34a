"""The store is away for a while: no job is lost, ends twice, or keeps its slot, and new work is refused meanwhile."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator

import pytest

from serve_app.edits.job import JobCounts, JobState, Policy, RepeatKey
from serve_app.errors import EditFailed, ServiceUnavailable
from serve_app.jobs import heartbeat, store_link
from serve_app.jobs.stores.store import Store
from tests.fakes import FakeEditor, picture
from tests.jobs.conftest import Stores, async_test
from tests.jobs.replicas import CutOffStore, Replica, replica_on, spec, state
from tests.jobs.samples import record
from tests.service.receiver import Receiver, receiving
from tests.waiting import until_async


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_link, "RETRY_S", 0.05)
    monkeypatch.setattr(heartbeat, "START_S", 0.2)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def held() -> FakeEditor:
    return FakeEditor(gate=asyncio.Semaphore(0))


def release(editor: FakeEditor, number: int = 1) -> None:
    assert editor.gate is not None
    for _ in range(number):
        editor.gate.release()


async def idle(service: Replica) -> bool:
    counts = await service.counts()
    return counts.in_queue + counts.in_progress == 0


@async_test
async def test_a_job_that_ends_during_an_outage_ends_after_it_and_frees_its_slot(stores: Stores) -> None:
    store, editor = CutOffStore(stores.open()), held()
    async with replica_on(store.as_store, editor, max_active_jobs=1) as service:
        for name in ("first", "behind it"):
            await service.submit(spec(name), [(picture(),)])
        await until_async(lambda: len(editor.requests) == 1)
        store.away = True
        release(editor, 2)
        num_calls = len(store.calls)
        await until_async(lambda: store.calls[num_calls:].count("complete") >= 3)
        # Known without the store, and not reported before it is stored.
        assert await state(service, "first", 0) is JobState.IN_PROGRESS
        assert await service.counts() == JobCounts(in_queue=1, in_progress=1)
        store.away = False
        assert await state(service, "first") is JobState.COMPLETED
        assert await state(service, "behind it") is JobState.COMPLETED
        assert await service.counts() == JobCounts(completed=2)
    assert len(editor.requests) == 2  # the picture that was drawn was kept


@async_test
async def test_while_pictures_cannot_be_stored_no_more_are_drawn_than_may_be_active(stores: Stores) -> None:
    store, editor = CutOffStore(stores.open()), held()
    store.spared |= {"record", "spec", "pictures", "outcomes"}  # as with a full disk
    async with replica_on(store.as_store, editor, max_active_jobs=2) as service:
        for name in "abcdef":
            await service.submit(spec(name), [(picture(),)])
        await until_async(lambda: len(editor.requests) == 2)
        store.away = True
        release(editor, 6)
        await until_async(lambda: store.calls.count("complete") >= 6)
        assert await service.counts() == JobCounts(in_queue=4, in_progress=2)
        store.away = False
        for name in "abcdef":
            assert await state(service, name) is JobState.COMPLETED
    assert len(editor.requests) == 6


@async_test
async def test_a_client_that_waits_gets_the_end_though_the_store_is_away_just_after_it(stores: Stores) -> None:
    store, editor = CutOffStore(stores.open()), held()
    store.away_after = "complete", 1
    async with replica_on(store.as_store, editor) as service:
        await service.submit(spec("job"), [(picture(),)])
        waiting = asyncio.create_task(service.wait_for_pictures("job", 10))
        await until_async(lambda: len(editor.requests) == 1)
        release(editor)
        end = await waiting
        assert (end.record.state, len(end.outcomes)) == (JobState.COMPLETED, 1)
        store.away = False


@async_test
async def test_the_outage_may_begin_between_the_last_picture_and_the_end(stores: Stores) -> None:
    store, editor = CutOffStore(stores.open()), FakeEditor()
    store.away_after = "add_outcome", 2
    async with replica_on(store.as_store, editor) as service:
        # Neither is the last one when it is drawn.
        await service.submit(spec("job", "one", "two"), [(picture(),)])
        await until_async(lambda: store.calls.count("update") >= 4)
        assert not await idle(service)
        store.away = False
        assert await state(service, "job") is JobState.COMPLETED
        await until_async(lambda: idle(service))


@async_test
async def test_a_job_that_fails_during_an_outage_is_failed_once(stores: Stores) -> None:
    store, editor = CutOffStore(stores.open()), held()
    editor.problem = EditFailed("broken")
    async with replica_on(store.as_store, editor) as service:
        await service.submit(spec("job"), [(picture(),)])
        await until_async(lambda: len(editor.requests) == 1)
        await until_async(lambda: "update" in store.calls)  # its pick-up
        store.away = True
        release(editor)
        num_calls = len(store.calls)
        await until_async(lambda: store.calls[num_calls:].count("update") >= 2)
        store.away = False
        job = await service.wait("job", 20)
        assert (job.state, job.error_code) == (JobState.FAILED, "edit_failed")
        assert await service.counts() == JobCounts(failed=1)


@async_test
async def test_a_job_that_expires_during_an_outage_is_timed_out_after_it(stores: Stores) -> None:
    store, editor = CutOffStore(stores.open()), held()
    async with replica_on(store.as_store, editor, max_active_jobs=1) as service:
        await service.submit(spec("first"), [(picture(),)])
        await until_async(lambda: len(editor.requests) == 1)
        await service.submit(spec("late", policy=Policy(ttl_s=0.3)), [(picture(),)])
        store.away = True
        await until_async(lambda: store.calls.count("update") >= 3)
        store.away = False
        assert await state(service, "late") is JobState.TIMED_OUT
        release(editor)
        assert await state(service, "first") is JobState.COMPLETED
        assert await service.counts() == JobCounts(completed=1, failed=1)


@async_test
async def test_time_without_the_store_is_no_execution_time(stores: Stores) -> None:
    store, editor = CutOffStore(stores.open()), held()
    async with replica_on(store.as_store, editor) as service:
        await service.submit(spec("job", policy=Policy(execution_timeout_s=60, timeout_s=60)), [(picture(),)])
        await until_async(lambda: len(editor.requests) == 1)
        assert len(service._live["job"].limits) == 1
        store.away = True
        release(editor)
        await until_async(lambda: store.calls.count("complete") >= 2)
        assert service._live["job"].limits == set()  # it is drawn: no limit is left that could end it
        store.away = False
        assert await state(service, "job") is JobState.COMPLETED


@async_test
async def test_new_work_is_refused_during_an_outage_and_taken_after_it(stores: Stores) -> None:
    store = CutOffStore(stores.open())
    async with replica_on(store.as_store, FakeEditor()) as service:
        assert await service.fault() is None
        store.away = True
        with pytest.raises(ServiceUnavailable, match="job store cannot be reached"):
            await service.submit(spec("refused"), [(picture(),)])
        assert await service.fault() == "store"
        num_calls = len(store.calls)
        with pytest.raises(ServiceUnavailable):
            await service.reserve("another", "")
        assert "add" not in store.calls[num_calls:]  # refused before anything is prepared or sent
        await until_async(lambda: store.calls[num_calls:].count("beat") >= 2)
        assert await service.fault() == "store"
        store.away = False
        await until_async(lambda: _is_well(service))
        await service.submit(spec("taken"), [(picture(),)])
        assert await state(service, "taken") is JobState.COMPLETED


@async_test
@pytest.mark.parametrize("repeat_key", [None, RepeatKey("key", "fingerprint")])
async def test_a_job_that_was_stored_although_its_client_was_refused_runs_only_where_a_repeat_finds_it(
    stores: Stores, receiver: Receiver, repeat_key: RepeatKey | None
) -> None:
    store, editor = CutOffStore(stores.open()), FakeEditor()
    async with replica_on(store.as_store, editor, webhook_origins=(receiver.origin,)) as service:
        add = store.as_store.add

        async def add_without_answer(*args: object) -> str:
            await add(*args)  # type: ignore[arg-type]
            raise store.problem

        vars(store)["add"] = add_without_answer
        job = spec("job", webhook=f"{receiver.origin}/hook/200", repeat_key=repeat_key)
        with pytest.raises(ServiceUnavailable):
            await service.submit(job, [(picture(),)])
        await until_async(lambda: _has_no_open_job(store.as_store))
        expected = JobState.CANCELLED if repeat_key is None else JobState.COMPLETED
        assert await state(service, "job") is expected
        assert len(editor.requests) == len(receiver.calls) == (0 if repeat_key is None else 1)
        assert (await service.counts()).in_queue == 0


@async_test
async def test_a_job_whose_client_left_while_it_was_stored_is_not_drawn(stores: Stores) -> None:
    store, editor, is_stored = CutOffStore(stores.open()), FakeEditor(), asyncio.Event()
    async with replica_on(store.as_store, editor) as service:
        add = store.as_store.add

        async def add_slowly(*args: object) -> str:
            await add(*args)  # type: ignore[arg-type]
            is_stored.set()
            await asyncio.Event().wait()
            raise AssertionError

        vars(store)["add"] = add_slowly
        submission = asyncio.create_task(service.submit(spec("job"), [(picture(),)]))
        await is_stored.wait()
        submission.cancel()
        await until_async(lambda: _has_no_open_job(store.as_store))
        assert await state(service, "job") is JobState.CANCELLED
        assert editor.requests == []


async def _is_well(service: Replica) -> bool:
    return await service.fault() is None


@async_test
async def test_a_client_that_waits_for_a_job_keeps_waiting_through_an_outage(stores: Stores) -> None:
    store, editor = CutOffStore(stores.open()), held()
    async with replica_on(store.as_store, editor) as service:
        await service.submit(spec("job"), [(picture(),)])
        waiting = asyncio.create_task(service.wait("job", 20))
        await until_async(lambda: len(editor.requests) == 1)
        store.away = True
        release(editor)
        await asyncio.sleep(0.2)
        store.away = False
        job = await waiting
        assert job.state is JobState.COMPLETED
        store.away = True
        with pytest.raises(ServiceUnavailable):
            await service.wait("job", 0)


@async_test
async def test_a_replica_starts_without_its_store_and_takes_over_when_that_is_back(stores: Stores) -> None:
    first = held()
    async with replica_on(stores.open(), first) as service:
        await service.submit(spec("left behind"), [(picture(),)])
        await until_async(lambda: len(first.requests) == 1)
    await stores.let_pass(1.5)  # the first one's lease
    store, editor = CutOffStore(stores.open()), FakeEditor()
    store.away = True
    async with replica_on(store.as_store, editor) as service:
        assert await service.fault() == "store"
        store.away = False
        await until_async(lambda: len(editor.requests) == 1)
        assert await state(service, "left behind") is JobState.COMPLETED


@async_test
async def test_jobs_whose_adoption_was_not_answered_are_taken_over_by_the_next_heartbeat(stores: Stores) -> None:
    store, editor = CutOffStore(stores.open()), FakeEditor()
    adopt = store.as_store.adopt
    num_lost = 0

    async def adopt_without_answer(owner: str) -> object:
        nonlocal num_lost
        adopted = await adopt(owner)
        if adopted and not num_lost:
            num_lost += 1
            raise store.problem
        return adopted

    vars(store)["adopt"] = adopt_without_answer
    for name in ("first", "second"):
        await store.as_store.add(spec(name), [(picture(),)], record(), "dead")
    async with replica_on(store.as_store, editor, clock=lambda: stores.now) as service:
        for name in ("first", "second"):
            assert await state(service, name) is JobState.COMPLETED
        assert num_lost == 1
        assert sorted(each.prompt for each in editor.requests) == ["first", "second"]


@async_test
async def test_a_webhook_whose_end_could_not_be_stored_is_notified_once_and_its_job_expires(
    stores: Stores, receiver: Receiver
) -> None:
    store = CutOffStore(stores.open())
    async with replica_on(
        store.as_store, FakeEditor(), clock=lambda: stores.now, webhook_origins=(receiver.origin,)
    ) as service:
        vars(store)["calls"] = Calls(store)
        await service.submit(spec("job", webhook=f"{receiver.origin}/hook/200", retention_s=1.0), [(picture(),)])
        await until_async(lambda: bool(receiver.calls))
        await until_async(lambda: store.calls.count("update") + store.calls.count("record") >= 4)
        store.away = False
        await until_async(lambda: _has_no_open_job(store.as_store))
        assert [path for path, _ in receiver.calls] == ["/hook/200"]
        await stores.let_pass(1.5)
        assert await store.as_store.record("job") is None


class Calls(list[str]):
    """Cuts the store off before it is updated after a webhook's notification: at the first read after the body's."""

    def __init__(self, store: CutOffStore) -> None:
        super().__init__()
        self._store = store

    def append(self, name: str) -> None:
        if name == "record" and "outcomes" in self and "spec" in self and "cut" not in self:
            super().append("cut")
            self._store.away = True
        super().append(name)


async def _has_no_open_job(store: Store) -> bool:
    return await store.open_jobs() == {}


def test_a_call_of_a_store_that_hangs_ends_and_the_store_counts_as_away() -> None:
    async def hang(store: Store) -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        link = store_link.StoreLink(CutOffStore(None).as_store)  # type: ignore[arg-type]
        patient = asyncio.create_task(link.call(hang, timeout_s=60))
        await asyncio.sleep(0)
        with pytest.raises(ServiceUnavailable):
            await link.call(hang, timeout_s=0.01)
        assert link.is_away
        # No call goes on waiting for a store that is known to hang.
        with pytest.raises(ServiceUnavailable):
            await asyncio.wait_for(patient, 5)
        await asyncio.sleep(0.1)
        assert not link.is_away  # until the next failure

    asyncio.run(scenario())


def test_a_call_that_ignores_its_cancellation_delays_no_other() -> None:
    async def stubborn(store: Store) -> None:
        while not over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await over.wait()

    async def scenario() -> None:
        link = store_link.StoreLink(CutOffStore(None).as_store)  # type: ignore[arg-type]
        caller = asyncio.create_task(link.call_until_done(stubborn))
        await asyncio.sleep(0.01)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        with pytest.raises(ServiceUnavailable):
            await link.call(stubborn, timeout_s=0.01)
        over.set()

    over = asyncio.Event()
    asyncio.run(scenario())


@async_test
async def test_a_damaged_file_is_an_outage_that_names_the_fix(
    sqlite_stores: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    store = CutOffStore(sqlite_stores.open())
    async with replica_on(store.as_store, FakeEditor()) as service:
        damaged = sqlite3.DatabaseError("database disk image is malformed")
        damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        store.problem, store.away = damaged, True
        await until_async(lambda: _is_away(service))
        num_calls = len(store.calls)
        await until_async(lambda: store.calls[num_calls:].count("beat") >= 3)
        assert await service.fault() == "store"
        assert "its file is damaged: stop the service and move the file away" in caplog.text


async def _is_away(service: Replica) -> bool:
    return await service.fault() == "store"
