"""The Retry-After of rejected requests, from the number of edits that are finished per second."""

import asyncio

import pytest

from serve_app.config import AppSettings
from serve_app.edits.job import JobCounts
from serve_app.edits.request import EditRequest, EditResult, Progress, SharedPictures
from serve_app.edits.service import OnProgress
from serve_app.errors import EditFailed, Overloaded, ServiceUnavailable
from serve_app.ingress.backend import RETRY_AFTER_S
from serve_app.ingress.throughput import (
    COUNT_EVERY_S,
    MAX_RETRY_AFTER_S,
    MIN_RETRY_AFTER_S,
    WINDOW_S,
    MeteredEditor,
    ThroughputMeter,
)
from tests.fakes import FakeEditor, edit_request, picture
from tests.ingress.openai_harness import FakeJobs, error_of, harness
from tests.waiting import until_async


class CountedJobs(FakeJobs):
    """A JobsPort that returns these counts."""

    counted: JobCounts | Exception = JobCounts()
    num_calls = 0

    async def counts(self) -> JobCounts:
        self.num_calls += 1
        if isinstance(self.counted, Exception):
            raise self.counted
        return self.counted


class Scene:
    """A ThroughputMeter whose clock and jobs the test moves."""

    def __init__(self, tiny_settings: AppSettings) -> None:
        self.now_s = 100.0
        self.jobs = CountedJobs(harness(tiny_settings).backend.service)
        self.meter = ThroughputMeter(self.jobs, lambda: self.now_s)

    def count(self, after_s: float, counted: JobCounts | Exception) -> None:
        self.now_s += after_s
        self.jobs.counted = counted
        asyncio.run(self.meter.count())

    @property
    def retry_after_s(self) -> int:
        async def measured() -> int:
            self.jobs.counted = ServiceUnavailable("not counted by the test")
            return self.meter.retry_after_s()

        return asyncio.run(measured())


@pytest.fixture
def scene(tiny_settings: AppSettings) -> Scene:
    return Scene(tiny_settings)


def test_the_wait_is_the_queue_over_the_pace(scene: Scene) -> None:
    scene.count(0, JobCounts(in_queue=8, in_progress=1))
    assert scene.retry_after_s == RETRY_AFTER_S
    scene.count(10, JobCounts(in_queue=8, in_progress=1, completed=4, failed=1))
    assert scene.retry_after_s == 16  # five in ten seconds, eight to go
    scene.count(10, JobCounts(in_queue=30, in_progress=1, completed=9, failed=1))
    assert scene.retry_after_s == 60


def test_own_edits_count_as_jobs_do(scene: Scene) -> None:
    scene.meter.num_waiting = 6
    scene.count(0, JobCounts())
    scene.meter.num_done = 2
    scene.count(4, JobCounts(in_queue=1))
    assert scene.retry_after_s == 14


@pytest.mark.parametrize(("waiting", "expected"), [(0, MIN_RETRY_AFTER_S), (100_000, MAX_RETRY_AFTER_S)])
def test_the_wait_is_bounded(scene: Scene, waiting: int, expected: int) -> None:
    scene.count(0, JobCounts(in_progress=1))
    scene.count(10, JobCounts(in_progress=1, in_queue=waiting, completed=10))
    assert scene.retry_after_s == expected


def test_idle_time_is_no_measure(scene: Scene) -> None:
    scene.count(0, JobCounts(completed=5))
    scene.count(50, JobCounts(completed=5))
    scene.count(2, JobCounts(in_queue=10, in_progress=1, completed=7))
    assert scene.retry_after_s == 10  # of the last two seconds, not of the last 52


def test_old_times_are_no_measure(scene: Scene) -> None:
    scene.count(0, JobCounts(in_queue=1, in_progress=1))
    scene.count(WINDOW_S, JobCounts(in_queue=1, in_progress=1, completed=600))
    scene.count(10, JobCounts(in_queue=10, in_progress=1, completed=601))
    assert scene.retry_after_s == 100


def test_a_new_jobs_replica_counts_from_nothing(scene: Scene) -> None:
    scene.count(0, JobCounts(in_queue=1, completed=500))
    scene.count(5, JobCounts(in_queue=1, completed=3))
    assert scene.retry_after_s == RETRY_AFTER_S
    scene.count(5, JobCounts(in_queue=4, completed=8))
    assert scene.retry_after_s == 4


def test_jobs_that_cannot_be_counted_leave_the_last_measure(scene: Scene) -> None:
    scene.count(0, JobCounts(in_queue=8, in_progress=1))
    scene.count(10, JobCounts(in_queue=8, in_progress=1, completed=5))
    scene.count(10, ServiceUnavailable("gone"))
    assert scene.retry_after_s == 16


def test_a_storm_of_refusals_asks_the_jobs_once_a_second(scene: Scene) -> None:
    async def storm() -> None:
        for _ in range(200):
            scene.meter.retry_after_s()
        await asyncio.sleep(0)

    asyncio.run(storm())
    assert scene.jobs.num_calls == 1
    scene.now_s += COUNT_EVERY_S
    asyncio.run(storm())
    assert scene.jobs.num_calls == 2


def ignore(progress: Progress) -> None:
    pass


def counts(meter: ThroughputMeter) -> tuple[int, int, int]:
    return meter.num_waiting, meter.num_running, meter.num_done


def test_an_edit_waits_runs_and_is_done(scene: Scene) -> None:
    async def scenario() -> None:
        fake = FakeEditor(gate=asyncio.Semaphore(0))
        editor = MeteredEditor(fake, scene.meter)
        seen: list[Progress] = []
        task = asyncio.create_task(editor.edit(edit_request("a"), SharedPictures((picture(),)), seen.append))
        assert counts(scene.meter) == (0, 0, 0)
        await until_async(lambda: counts(scene.meter) == (0, 1, 0))
        assert fake.gate is not None
        fake.gate.release()
        await task
        assert counts(scene.meter) == (0, 0, 1)
        assert seen == [Progress(0, 4)]

    asyncio.run(scenario())


@pytest.mark.parametrize("taken_up", [False, True])
def test_an_edit_that_fails_is_neither_waiting_nor_done(scene: Scene, taken_up: bool) -> None:
    class Failing(FakeEditor):
        async def edit(
            self,
            request: EditRequest,
            pictures: SharedPictures,
            on_progress: OnProgress,
            timeout_s: float | None = None,
        ) -> EditResult:
            assert counts(scene.meter) == (1, 0, 0)
            if taken_up:
                on_progress(Progress(0, 1))
                assert counts(scene.meter) == (0, 1, 0)
            raise EditFailed("broken")

    with pytest.raises(EditFailed):
        asyncio.run(MeteredEditor(Failing(), scene.meter).edit(edit_request("a"), SharedPictures((picture(),)), ignore))
    assert counts(scene.meter) == (0, 0, 0)


def test_a_refusal_tells_the_wait_in_both_dialects(tiny_settings: AppSettings) -> None:
    app = harness(tiny_settings)
    app.app.state.retry_after_s = lambda: 77
    app.editor.problem = Overloaded("full")
    response = app.edit("json")
    error_of(response, 429)
    assert response.headers["retry-after"] == "77"


def test_other_refusals_do_not(tiny_settings: AppSettings) -> None:
    app = harness(tiny_settings)
    app.app.state.retry_after_s = lambda: 77
    app.editor.problem = ServiceUnavailable("gone")
    assert app.edit("json").headers["retry-after"] == "5"
