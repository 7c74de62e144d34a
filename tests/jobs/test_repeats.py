"""Calls that come twice, and calls that race for the last place."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from serve_app.edits.job import JobState, RepeatKey
from serve_app.errors import (
    EditFailed,
    InvalidInput,
    JobNotFound,
    Overloaded,
    RepeatKeyConflict,
    ServiceUnavailable,
)
from serve_app.jobs import runner
from tests.fakes import FakeEditor, FakeRewriter, picture
from tests.jobs.conftest import Stores, async_test
from tests.jobs.replicas import CutOffStore, Replica, replica_on, spec, state
from tests.waiting import until_async

KEY = RepeatKey("key", "fingerprint")
BRIEF: dict[str, Any] = {"sync_retention_s": 1.0, "async_retention_s": 1.0, "lease_s": 60.0}
"""Jobs are kept for a second, and only the test makes the heart beat."""


@async_test
async def test_a_repeat_finds_its_job_in_a_full_queue(stores: Stores) -> None:
    editor = FakeEditor(gate=asyncio.Semaphore(0))
    async with replica_on(stores.open(), editor, max_active_jobs=1, max_queued_jobs=0) as service:
        first = spec("first", repeat_key=KEY)
        assert await service.submit(first, [(picture(),)]) == "first"
        assert await service.submit(spec("again", repeat_key=KEY), [(picture(),)]) == "first"
        assert await service.submit(first, [(picture(),)]) == "first"  # sent again by an ingress that got no answer
        with pytest.raises(RepeatKeyConflict):
            await service.submit(spec("other", repeat_key=replace(KEY, fingerprint="other")), [(picture(),)])
        with pytest.raises(Overloaded):
            await service.submit(spec("new"), [(picture(),)])
        counts = await service.counts()
        assert counts.in_queue + counts.in_progress == 1


@async_test
async def test_a_repeat_key_is_found_without_submitting(stores: Stores) -> None:
    async with replica_on(stores.open(), FakeEditor()) as service:
        assert await service.find(KEY) is None
        kept = spec("job", repeat_key=KEY)
        await service.submit(kept, [(picture(),)])
        assert await service.find(KEY) == kept
        with pytest.raises(RepeatKeyConflict):
            await service.find(replace(KEY, fingerprint="other"))


async def failed_jobs(service: Replica, editor: FakeEditor, number: int) -> list[str]:
    editor.problem = EditFailed("broken")
    ids = [f"job {index}" for index in range(number)]
    for job_id in ids:
        await service.submit(spec(job_id), [(picture(),)])
        assert await state(service, job_id) is JobState.FAILED
    editor.problem, editor.gate = None, asyncio.Semaphore(0)
    return ids


@async_test
async def test_of_ten_retries_at_once_as_many_are_accepted_as_there_is_room_for(stores: Stores) -> None:
    editor = FakeEditor()
    async with replica_on(stores.open(), editor, max_active_jobs=1, max_queued_jobs=1) as service:
        ids = await failed_jobs(service, editor, 10)
        ends = await asyncio.gather(*(service.retry(job_id, job_id) for job_id in ids), return_exceptions=True)
        assert [isinstance(end, Overloaded) for end in ends].count(False) == 2
        counts = await service.counts()
        assert counts.in_queue + counts.in_progress == 2


@async_test
async def test_a_retry_that_is_repeated_is_the_same_retry(stores: Stores) -> None:
    editor = FakeEditor()
    async with replica_on(stores.open(), editor, max_active_jobs=1, max_queued_jobs=0) as service:
        (job_id,) = await failed_jobs(service, editor, 1)
        assert (await service.retry(job_id, "call 1")).num_retries == 1
        again = await service.retry(job_id, "call 1")  # although the queue is full now
        assert (again.state.final, again.num_retries) == (False, 1)
        with pytest.raises(Overloaded):
            await service.retry(job_id, "call 2")
        assert editor.gate is not None
        editor.gate.release()
        assert await state(service, job_id) is JobState.COMPLETED
        assert (await service.retry(job_id, "call 1")).state is JobState.COMPLETED
        with pytest.raises(InvalidInput, match="this one is COMPLETED"):
            await service.retry(job_id, "call 2")


@async_test
async def test_a_heartbeat_in_the_middle_of_a_retry_does_not_enlist_the_job_twice(stores: Stores) -> None:
    store, editor = CutOffStore(stores.open()), FakeEditor()
    async with replica_on(store.as_store, editor) as service:
        (job_id,) = await failed_jobs(service, editor, 1)
        reopen = store.as_store.reopen

        async def and_heartbeat(*args: object) -> bool:
            done: bool = await reopen(*args)  # type: ignore[arg-type]
            await service._heartbeat.beat()
            return done

        vars(store)["reopen"] = and_heartbeat
        await service.retry(job_id, "call")
        counts = await service.counts()
        assert counts.in_queue + counts.in_progress == 1
        assert editor.gate is not None
        for _ in range(2):
            editor.gate.release()
        assert await state(service, job_id) is JobState.COMPLETED
        assert len(editor.requests) == 2  # the one that failed, and one more


@async_test
async def test_a_job_that_expires_between_two_reads_is_not_found(stores: Stores) -> None:
    store = CutOffStore(stores.open())
    async with replica_on(store.as_store, FakeEditor(), clock=lambda: stores.now) as service:
        await service.submit(spec("job", retention_s=0.3), [(picture(),)])
        assert await state(service, "job") is JobState.COMPLETED
        read = store.as_store.outcomes

        async def too_late(job_id: str) -> object:
            await stores.let_pass(0.5)
            return await read(job_id)

        vars(store)["outcomes"] = too_late
        with pytest.raises(JobNotFound):
            await service.read("job")


@async_test
async def test_listeners_of_an_ended_job_cost_one_read_of_its_pictures_and_a_sweep_none(stores: Stores) -> None:
    store, ids = CutOffStore(stores.open()), [f"job {number}" for number in range(10)]
    async with replica_on(store.as_store, FakeEditor(), clock=lambda: stores.now, **BRIEF) as service:
        for job_id in ids:
            await service.submit(spec(job_id, retention_s=1.0), [(picture(),)])
            assert await state(service, job_id) is JobState.COMPLETED
        store.calls.clear()
        news = await asyncio.gather(*(service.news(job_id, 0) for job_id in ids * 20))
        assert sum(len(each.outcomes) for each in news) == len(ids)
        assert store.calls.count("outcomes") == len(ids)
        # As many as streams of half an hour's jobs.
        service._cursors.update((f"other {number}", service._cursors["job 0"]) for number in range(10_000))
        store.calls.clear()
        await service._heartbeat.beat()
        assert store.calls == ["beat", "adopt", "sweep"]
        assert not (await service.news("job 0", 0)).outcomes
        await stores.let_pass(1.1)
        await service._heartbeat.beat()
        assert not service._cursors


@async_test
async def test_a_stream_remembers_what_it_sent_of_a_job_that_runs_longer_than_jobs_are_kept(stores: Stores) -> None:
    editor = FakeEditor(gate=asyncio.Semaphore(1))
    async with replica_on(stores.open(), editor, clock=lambda: stores.now, **BRIEF) as service:
        await service.submit(spec("job", "a", "b", retention_s=1.0), [(picture(),)])
        assert len((await service.news("job", 20)).outcomes) == 1
        await stores.let_pass(1.1)
        await service._heartbeat.beat()
        assert editor.gate is not None
        editor.gate.release()
        assert await state(service, "job") is JobState.COMPLETED
        await service._heartbeat.beat()
        assert len((await service.news("job", 0)).outcomes) == 1


@async_test
@pytest.mark.parametrize("problem", [Overloaded("full"), ServiceUnavailable("the editor died")])
async def test_an_edit_is_rewritten_once_however_often_it_is_drawn(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    monkeypatch.setattr(runner, "EDITOR_RETRY_S", 0.01)
    editor, rewriter = FakeEditor(problem=problem), FakeRewriter()
    async with replica_on(stores.open(), editor, rewriter) as service:
        await service.submit(spec("job", rewrite=True), [(picture(),)])
        await until_async(lambda: len(editor.requests) >= 4)
        editor.problem = None
        job = await service.wait("job", 20)
        assert job.state is JobState.COMPLETED
        assert {each.prompt for each in editor.requests} == {"a precise wish"}
        assert len(rewriter.jobs) == 1
