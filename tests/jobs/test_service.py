"""Jobs beyond what the HTTP tests see: several replicas over one store, leases, takeovers, lost editors."""

import asyncio
import json
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from serve_app.config import JobSettings, SqliteStoreSettings
from serve_app.edits.job import Job, JobEnd, JobNews, JobRecord, JobSpec, JobState, Policy
from serve_app.edits.request import EditRequest, EditResult, Pictures, Progress, SharedPictures
from serve_app.edits.service import EditService, OnProgress
from serve_app.edits.sizes import OutputSize, Size
from serve_app.errors import JobNotFound, Overloaded, ServiceUnavailable
from serve_app.jobs import runner
from serve_app.jobs.live import StreamCursor
from serve_app.jobs.service import JobService
from serve_app.jobs.stores.sqlite_store import SqliteStore
from tests.fakes import FakeEditor, picture
from tests.garbage import freed_at_once
from tests.service.receiver import receiving
from tests.waiting import until_async

SIZE = Size(64, 64)
LEASE_S = 1.0

Replica = JobService
Make = Callable[..., Any]


def spec(name: str, *prompts: str, **more: Any) -> JobSpec:
    edits = tuple(
        EditRequest(request_id=name, prompt=prompt, size=OutputSize(SIZE, SIZE)) for prompt in prompts or (name,)
    )
    return JobSpec(name, edits, (0,) * len(edits), 42, Policy(), 60.0, **more)


def body(spec: JobSpec, job: Job) -> bytes:
    return json.dumps({"id": spec.id, "status": job.record.state}).encode()


@pytest.fixture
def replica(tmp_path: Path) -> Make:
    """Makes replicas over one file. Each is closed at the end of its context; its jobs stay in the file."""
    store = SqliteStoreSettings(path=str(tmp_path / "jobs.sqlite3"))

    @asynccontextmanager
    async def make(editor: FakeEditor, **settings: Any) -> AsyncIterator[Replica]:
        job_settings = JobSettings(**{"store": store, "lease_s": LEASE_S, "webhook_gap_s": 0.0, **settings})
        service = JobService(job_settings, EditService(editor, None), SqliteStore(store), SharedPictures, body)
        await service.start()
        try:
            yield service
        finally:
            await service.close()

    return make


async def state(service: Replica, job_id: str, wait_s: float = 5) -> JobState:
    return (await service.wait(job_id, wait_s)).state


def test_a_successor_takes_over_what_a_replica_left_and_draws_only_what_is_missing(replica: Make) -> None:
    async def live() -> None:
        held = FakeEditor(gate=asyncio.Semaphore(1))
        async with replica(held) as first:
            await first.submit(spec("job", "a", "b", "c"), [(picture(),)])
            news = await first.news("job", 5)
            assert len(news.outcomes) == 1
        editor = FakeEditor()
        async with replica(editor) as second:
            # The first one's lease has not expired yet, but the second one finds the job.
            assert not (await state(second, "job", 0)).final
            await second.wait("job", 5)
            job = await second.read("job")
        assert job.record.state is JobState.COMPLETED
        assert [outcome.final_prompt for outcome in job.outcomes] == ["a", "b", "c"]
        assert sorted(each.prompt for each in editor.requests) == ["b", "c"]

    asyncio.run(live())


def test_a_replica_that_lost_its_lease_cannot_end_the_job_a_second_time(
    replica: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def live() -> None:
        stalled = FakeEditor(gate=asyncio.Semaphore(0))
        async with replica(stalled) as first:
            await first.submit(spec("job"), [(picture(),)])
            await until_async(lambda: bool(stalled.requests))
            with monkeypatch.context() as patch:
                # As if its process had been stopped for longer than its lease.
                patch.setattr(first._store._store, "beat", None)
                async with replica(FakeEditor()) as second:
                    done = await second.wait("job", 5)
                    assert done.state is JobState.COMPLETED
                    assert stalled.gate is not None
                    stalled.gate.release()
                    await asyncio.sleep(0.2)
                    assert await second.wait("job", 0) == done
                    assert (await second.counts()).completed == 1
                    assert (await first.counts()).completed == 0

    asyncio.run(live())


def test_a_cancelled_job_leaves_no_pictures_to_the_garbage_collector(replica: Make) -> None:
    class Stalled(FakeEditor):
        async def edit(
            self,
            request: EditRequest,
            pictures: SharedPictures,
            on_progress: OnProgress,
            timeout_s: float | None = None,
        ) -> EditResult:
            references.append(weakref.ref(cast(Pictures, pictures)[0]))
            return await super().edit(request, pictures, on_progress, timeout_s)

    async def live() -> None:
        editor = Stalled(gate=asyncio.Semaphore(0))
        async with replica(editor) as jobs:
            await jobs.submit(spec("job"), [(picture(),)])
            await until_async(lambda: bool(editor.requests))
            await jobs.cancel("job")
            await until_async(lambda: editor.num_cancelled == 1)
            await until_async(lambda: references[0]() is None)

    with freed_at_once() as references:
        asyncio.run(live())


def test_what_one_replica_runs_another_one_cancels(replica: Make) -> None:
    async def live() -> None:
        editor = FakeEditor(gate=asyncio.Semaphore(0))
        async with replica(editor) as first, replica(FakeEditor()) as second:
            await first.submit(spec("job"), [(picture(),)])
            await until_async(lambda: bool(editor.requests))
            waiting = asyncio.create_task(first.wait("job", 5))
            assert (await second.cancel("job")).state is JobState.CANCELLED
            assert (await waiting).state is JobState.CANCELLED
            await until_async(lambda: editor.num_cancelled == 1)
            assert (await first.counts()).in_progress == 0

    asyncio.run(live())


def test_all_who_cancel_a_job_at_once_learn_that_it_is_cancelled(replica: Make) -> None:
    async def live() -> None:
        editor = FakeEditor(gate=asyncio.Semaphore(0))
        async with replica(editor) as jobs:
            await jobs.submit(spec("job"), [(picture(),)])
            await until_async(lambda: bool(editor.requests))
            records = await asyncio.gather(*(jobs.cancel("job") for _ in range(8)))
            assert {record.state for record in records} == {JobState.CANCELLED}

    asyncio.run(live())


def test_the_end_of_a_job_that_runs_elsewhere_is_noticed(replica: Make) -> None:
    async def live() -> None:
        editor = FakeEditor(gate=asyncio.Semaphore(0))
        async with replica(editor) as first, replica(FakeEditor()) as second:
            await first.submit(spec("job"), [(picture(),)])
            waiting = asyncio.create_task(second.wait("job", 5))
            await asyncio.sleep(0.1)
            assert editor.gate is not None
            editor.gate.release()
            assert (await waiting).state is JobState.COMPLETED
            assert list((await second.news("job", 5)).outcomes) == [0]

    asyncio.run(live())


def test_pictures_come_with_the_end_that_is_waited_for_and_are_kept_only_for_that(replica: Make) -> None:
    async def live() -> None:
        editor = FakeEditor(gate=asyncio.Semaphore(0))
        async with replica(editor) as service:
            await service.submit(spec("job", "one", "two"), [(picture(),)])
            assert (await service.wait_for_pictures("job", 0)).outcomes == ()
            waiting = asyncio.gather(*(service.wait_for_pictures("job", 20) for _ in range(2)))
            await until_async(lambda: len(editor.requests) == 2)
            live = service._live["job"]
            assert editor.gate is not None
            editor.gate.release()
            editor.gate.release()
            await service.wait("job", 20)
            stored = await service.read("job")
            for end in await waiting:
                assert (end.record, end.outcomes) == (stored.record, stored.outcomes)
            assert [outcome.prompt for outcome in stored.outcomes] == ["one", "two"]
            assert not live.outcomes
            # Later, only `read` has them.
            assert await service.wait_for_pictures("job", 20) == JobEnd(stored.record)

    asyncio.run(live())


def test_an_end_without_all_pictures_comes_without_any(replica: Make) -> None:
    async def live() -> None:
        editor = FakeEditor(gate=asyncio.Semaphore(0))
        async with replica(editor) as service:
            await service.submit(spec("job", "one", "two"), [(picture(),)])
            waiting = asyncio.create_task(service.wait_for_pictures("job", 20))
            await until_async(lambda: len(editor.requests) == 2)
            assert editor.gate is not None
            editor.gate.release()
            await until_async(lambda: bool(service._live["job"].outcomes))
            await service.cancel("job")
            end = await waiting
            assert (end.record.state, end.outcomes) == (JobState.CANCELLED, ())

    asyncio.run(live())


def test_a_webhook_that_was_not_notified_is_notified_by_the_successor(replica: Make) -> None:
    async def live(origin: str) -> None:
        hook = f"{origin}/hook/200"
        async with replica(FakeEditor(), webhook_gap_s=60.0) as first:
            job = spec("job", webhook="http://127.0.0.1:9/nobody")
            await first.submit(job, [(picture(),)])
            assert await state(first, "job") is JobState.COMPLETED
            # The first attempt has failed, the second one is a minute away: now the replica dies.
            await asyncio.sleep(0.1)
        async with replica(FakeEditor(), webhook_origins=(origin,)) as second:
            patched = replace(job, webhook=hook)
            second._store._store.spec = lambda job_id: _returning(patched)
            await until_async(lambda: bool(receiver.calls))

    with receiving() as receiver:
        asyncio.run(live(receiver.origin))
        assert receiver.calls == [("/hook/200", {"id": "job", "status": "COMPLETED"})]


async def _returning(spec: JobSpec) -> JobSpec:
    return spec


def test_a_job_survives_the_death_of_its_editors(replica: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "EDITOR_RETRY_S", 0.02)

    async def live() -> None:
        editor = FakeEditor(problem=ServiceUnavailable("the replica died"))
        async with replica(editor) as service:
            await service.submit(spec("job"), [(picture(),)])
            await until_async(lambda: len(editor.requests) >= 3)
            editor.problem = None
            assert await state(service, "job") is JobState.COMPLETED
            # But not forever.
            editor.problem = ServiceUnavailable("the replica died")
            await service.submit(spec("hopeless"), [(picture(),)])
            hopeless = await service.wait("hopeless", 5)
            assert (hopeless.state, hopeless.error) == (JobState.FAILED, "the replica died")

    asyncio.run(live())


def test_a_job_waits_while_the_editors_are_full(replica: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "EDITOR_RETRY_S", 0.01)

    async def live() -> None:
        editor = FakeEditor(problem=Overloaded("full"))
        async with replica(editor) as service:
            await service.submit(spec("job"), [(picture(),)])
            await until_async(lambda: len(editor.requests) > 2 * runner.MAX_LOSSES)
            editor.problem = None
            assert await state(service, "job") is JobState.COMPLETED

    asyncio.run(live())


def test_a_job_keeps_its_requests_context_although_the_end_of_another_one_starts_it(replica: Make) -> None:
    request_id = ContextVar("request_id", default="none")

    class Editor(FakeEditor):
        async def edit(self, *args: Any, **more: Any) -> Any:
            seen.append(request_id.get())
            return await super().edit(*args, **more)

    async def live() -> None:
        editor = Editor(gate=asyncio.Semaphore(0))
        assert editor.gate is not None
        async with replica(editor, max_active_jobs=1) as service:
            for name in ("first", "second"):
                request_id.set(name)
                await service.submit(spec(name), [(picture(),)])
            editor.gate.release()
            editor.gate.release()
            assert await state(service, "second") is JobState.COMPLETED

    seen: list[str] = []
    asyncio.run(live())
    assert seen == ["first", "second"]


def test_an_ended_job_is_forgotten_after_its_retention(replica: Make) -> None:
    async def live() -> None:
        async with replica(FakeEditor()) as service:
            await service.submit(replace(spec("job"), retention_s=0.3), [(picture(),)])
            assert await state(service, "job") is JobState.COMPLETED
            assert (await service.news("job", 0)).outcomes
            await asyncio.sleep(0.4)
            with pytest.raises(JobNotFound):
                await service.wait("job", 0)
            with pytest.raises(JobNotFound):
                await service.news("job", 0)

    asyncio.run(live())


def test_the_same_job_sent_twice_runs_once(replica: Make) -> None:
    async def live() -> None:
        editor = FakeEditor()
        async with replica(editor) as service:
            ids = await asyncio.gather(*(service.submit(spec("job"), [(picture(),)]) for _ in range(5)))
            assert set(ids) == {"job"}
            assert await state(service, "job") is JobState.COMPLETED
            assert await service.submit(spec("job"), [(picture(),)]) == "job"
            assert len(editor.requests) == 1

    asyncio.run(live())


def test_a_job_sent_again_to_a_successor_waits_for_its_takeover(replica: Make) -> None:
    async def live() -> None:
        async with replica(FakeEditor(gate=asyncio.Semaphore(0))) as first:
            await first.submit(spec("job"), [(picture(),)])
        editor = FakeEditor()
        async with replica(editor) as second:
            await second.submit(spec("job"), [(picture(),)])
            assert await state(second, "job") is JobState.COMPLETED
            assert len(editor.requests) == 1
            assert (await second.counts()).completed == 1

    asyncio.run(live())


def test_the_record_that_is_returned_is_the_one_that_is_stored(replica: Make) -> None:
    async def live() -> None:
        async with replica(FakeEditor()) as service:
            await service.submit(spec("job"), [(picture(),)])
            returned: JobRecord = await service.wait("job", 5)
            assert await service._stored_record("job") == returned

    asyncio.run(live())


def test_each_preview_is_sent_once_even_if_later_steps_came_first() -> None:
    cursor = StreamCursor()

    def sent(*steps: Progress) -> list[Progress]:
        news = [cursor.unsent(JobState.IN_PROGRESS, {}, {0: step}) for step in steps]
        cursor.advance(news[-1])
        return list(news[-1].progress.values())

    assert sent(Progress(1, 4, b"one")) == [Progress(1, 4, b"one")]
    assert sent(Progress(1, 4, b"one")) == []
    assert sent(Progress(2, 4, b"one")) == [Progress(2, 4)]
    assert sent(Progress(2, 4, b"one")) == []
    assert sent(Progress(3, 4, b"two")) == [Progress(3, 4, b"two")]
    cursor.advance(JobNews(JobState.COMPLETED, {}, {}))
    assert cursor.progress == {}, "previews are not kept after the end"


class Previewing(FakeEditor):
    """Sends a preview and then a step without one, and is never done."""

    async def edit(
        self, request: EditRequest, pictures: SharedPictures, on_progress: OnProgress, timeout_s: float | None = None
    ) -> EditResult:
        on_progress(Progress(1, 4, b"one"))
        on_progress(Progress(2, 4))
        await asyncio.Event().wait()
        raise AssertionError


def test_a_preview_is_sent_although_a_later_step_was_reported(replica: Make) -> None:
    async def live() -> None:
        async with replica(Previewing()) as service:
            await service.submit(spec("job"), [(picture(),)])
            await until_async(lambda: is_running(service))
            assert (await service.news("job", 0)).progress == {0: Progress(2, 4, b"one")}

    async def is_running(service: Replica) -> bool:
        return await state(service, "job", 0) is JobState.IN_PROGRESS

    asyncio.run(live())
