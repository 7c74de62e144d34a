"""How long jobs may wait and run, and what ends them."""

import asyncio
import time

import pytest

from serve_app.edits.job import JobState, Policy
from serve_app.edits.request import EditRequest, EditResult, SharedPictures
from serve_app.edits.service import OnProgress
from serve_app.errors import DeadlineExceeded
from tests.fakes import FakeEditor, picture
from tests.jobs.conftest import SqliteStores, async_test
from tests.jobs.replicas import Replica, replica_on, spec
from tests.jobs.samples import outcome
from tests.waiting import until_async


async def end_of(service: Replica, job_id: str) -> tuple[JobState, str | None, str | None]:
    record = await service.wait(job_id, 20)
    return record.state, record.error, record.error_code


@async_test
async def test_a_job_past_its_timeout_leaves_the_editor_and_fails(sqlite_stores: SqliteStores) -> None:
    editor = FakeEditor(gate=asyncio.Semaphore(0))
    async with replica_on(sqlite_stores.open(), editor) as service:
        await service.submit(spec("job", "a", "b", policy=Policy(timeout_s=0.5)), [(picture(),)])
        message = "The request was not done within 0.5 s (timeout_s)."
        assert await end_of(service, "job") == (JobState.FAILED, message, "deadline_exceeded")
        assert editor.num_cancelled == 2
        # The engine has the same deadline, in case no replica is left to cancel the edit.
        assert all(each is not None and 0 < each <= 0.5 for each in editor.timeouts_s)


@async_test
async def test_a_job_that_waits_past_its_timeout_fails_and_one_past_its_ttl_is_timed_out(
    sqlite_stores: SqliteStores,
) -> None:
    editor = FakeEditor(gate=asyncio.Semaphore(0))
    async with replica_on(sqlite_stores.open(), editor, max_active_jobs=1) as service:
        await service.submit(spec("first"), [(picture(),)])
        await until_async(lambda: len(editor.requests) == 1)
        await service.submit(spec("impatient", policy=Policy(timeout_s=0.2)), [(picture(),)])
        await service.submit(spec("late", policy=Policy(ttl_s=0.2, timeout_s=5)), [(picture(),)])
        assert (await end_of(service, "impatient"))[::2] == (JobState.FAILED, "deadline_exceeded")
        assert (await end_of(service, "late"))[0] is JobState.TIMED_OUT
        assert len(editor.requests) == 1


@async_test
async def test_the_execution_timeout_counts_from_the_pick_up_and_keeps_its_text(sqlite_stores: SqliteStores) -> None:
    editor = FakeEditor(gate=asyncio.Semaphore(0))
    async with replica_on(sqlite_stores.open(), editor) as service:
        await service.submit(spec("job", policy=Policy(execution_timeout_s=0.2, timeout_s=60)), [(picture(),)])
        assert await end_of(service, "job") == (JobState.FAILED, "executionTimeout exceeded", "deadline_exceeded")
        assert editor.num_cancelled == 1


@async_test
async def test_the_engines_own_end_of_time_is_reported_the_same(sqlite_stores: SqliteStores) -> None:
    editor = FakeEditor(problem=DeadlineExceeded("The edit was not done within its 0.1 s."))
    async with replica_on(sqlite_stores.open(), editor) as service:
        await service.submit(spec("job", policy=Policy(timeout_s=7)), [(picture(),)])
        assert (await end_of(service, "job"))[1] == "The request was not done within 7 s (timeout_s)."


class Broken(FakeEditor):
    """Raises a TimeoutError of its own."""

    async def edit(
        self, request: EditRequest, pictures: SharedPictures, on_progress: OnProgress, timeout_s: float | None = None
    ) -> EditResult:
        raise TimeoutError("a socket, perhaps")


@async_test
async def test_another_timeout_is_not_reported_as_the_jobs(sqlite_stores: SqliteStores) -> None:
    async with replica_on(sqlite_stores.open(), Broken()) as service:
        await service.submit(spec("job"), [(picture(),)])
        assert await end_of(service, "job") == (
            JobState.FAILED,
            "Internal error; the server's log has the reason.",
            None,
        )


@async_test
@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_that_is_set_changes_no_deadline_of_a_job_that_is_taken_over(
    sqlite_stores: SqliteStores, hours: int
) -> None:
    now = time.time()
    async with replica_on(sqlite_stores.open(), FakeEditor(gate=asyncio.Semaphore(0)), clock=lambda: now) as first:
        await first.submit(spec("job", policy=Policy(ttl_s=0.5)), [(picture(),)])
        await sqlite_stores.let_pass(2)
    editor = FakeEditor(gate=asyncio.Semaphore(0))
    later = now + 3600 * hours
    async with replica_on(sqlite_stores.open(), editor, max_active_jobs=1, clock=lambda: later) as second:
        if hours > 0:
            assert (await end_of(second, "job"))[0] is JobState.TIMED_OUT
        else:
            await until_async(lambda: "job" in second._live)
            left_s = second._live["job"].expiry
            assert left_s is not None
            assert left_s.when() <= asyncio.get_running_loop().time() + 0.5


@async_test
async def test_a_job_that_was_picked_up_has_met_its_ttl(sqlite_stores: SqliteStores) -> None:
    now = [sqlite_stores.now]
    held = FakeEditor(gate=asyncio.Semaphore(0))
    async with replica_on(sqlite_stores.open(), held, clock=lambda: now[0]) as first:
        await first.submit(spec("job", policy=Policy(ttl_s=5)), [(picture(),)])
        await until_async(lambda: _is_stored_as(first, JobState.IN_PROGRESS))
        await sqlite_stores.let_pass(2)
    now[0] += 60
    async with replica_on(sqlite_stores.open(), FakeEditor(), clock=lambda: now[0]) as second:
        assert (await end_of(second, "job"))[0] is JobState.COMPLETED


@async_test
async def test_a_job_whose_pictures_are_all_stored_is_completed_after_its_deadline(sqlite_stores: SqliteStores) -> None:
    now = [sqlite_stores.now]
    store = sqlite_stores.open()
    async with replica_on(store, FakeEditor(gate=asyncio.Semaphore(0)), clock=lambda: now[0]) as first:
        await first.submit(spec("job", policy=Policy(timeout_s=5)), [(picture(),)])
        await until_async(lambda: _is_stored_as(first, JobState.IN_PROGRESS))
        assert await store.add_outcome("job", first._owner, 0, outcome())  # and dies before the end
        await sqlite_stores.let_pass(2)
    now[0] += 60
    editor = FakeEditor()
    async with replica_on(sqlite_stores.open(), editor, clock=lambda: now[0]) as second:
        assert (await end_of(second, "job"))[0] is JobState.COMPLETED
        assert editor.requests == []


async def _is_stored_as(service: Replica, state: JobState) -> bool:
    record = await service._stored_record("job")
    return record is not None and record.state is state


@async_test
async def test_what_the_ingress_has_used_of_the_timeout_counts(sqlite_stores: SqliteStores) -> None:
    editor = FakeEditor(gate=asyncio.Semaphore(0))
    async with replica_on(sqlite_stores.open(), editor) as service:
        await service.submit(spec("job", policy=Policy(timeout_s=60, spent_s=59.8)), [(picture(),)])
        assert await end_of(service, "job") == (
            JobState.FAILED,
            "The request was not done within 60 s (timeout_s).",
            "deadline_exceeded",
        )


@async_test
async def test_a_timer_that_fires_early_does_not_turn_a_timeout_into_a_ttl(sqlite_stores: SqliteStores) -> None:
    editor = FakeEditor(gate=asyncio.Semaphore(0))
    async with replica_on(sqlite_stores.open(), editor, max_active_jobs=1) as service:
        await service.submit(spec("first"), [(picture(),)])
        await until_async(lambda: len(editor.requests) == 1)
        await service.submit(spec("late", policy=Policy(timeout_s=60, ttl_s=600)), [(picture(),)])
        expiry = service._live["late"].expiry
        assert expiry is not None
        expiry._run()  # a minute early
        assert (await end_of(service, "late"))[::2] == (JobState.FAILED, "deadline_exceeded")
