"""What a client is told to wait, from what waits and how fast it goes."""

import asyncio

import pytest

from serve_app.config import AppSettings
from serve_app.edits.job import JobCounts
from serve_app.edits.request import EditRequest, EditResult, Progress, SharedPictures
from serve_app.edits.service import OnProgress
from serve_app.errors import EditFailed, Overloaded, ServiceUnavailable
from serve_app.ingress.load import LOOK_EVERY_S, MAX_S, MIN_S, UNKNOWN_S, WINDOW_S, ThroughputMeter
from serve_app.ingress.paced_editor import MeteredEditor
from tests.fakes import FakeEditor, job, picture
from tests.ingress.openai_harness import FakeJobs, harness, told
from tests.waiting import until_async


class CountedJobs(FakeJobs):
    """A JobsPort that counts what it is told to."""

    counted: JobCounts | Exception = JobCounts()
    num_asked = 0

    async def counts(self) -> JobCounts:
        self.num_asked += 1
        if isinstance(self.counted, Exception):
            raise self.counted
        return self.counted


class Scene:
    """A Pace whose clock and jobs the test moves."""

    def __init__(self, tiny_settings: AppSettings) -> None:
        self.now_s = 100.0
        self.jobs = CountedJobs(harness(tiny_settings).backend.service)
        self.pace = ThroughputMeter(self.jobs, lambda: self.now_s)

    def look(self, after_s: float, counted: JobCounts | Exception) -> None:
        self.now_s += after_s
        self.jobs.counted = counted
        asyncio.run(self.pace.look())

    @property
    def told(self) -> int:
        async def ask() -> int:
            self.jobs.counted = ServiceUnavailable("not asked by the test")
            return self.pace.retry_after_s()

        return asyncio.run(ask())


@pytest.fixture
def scene(tiny_settings: AppSettings) -> Scene:
    return Scene(tiny_settings)


def test_the_wait_is_the_queue_over_the_pace(scene: Scene) -> None:
    scene.look(0, JobCounts(in_queue=8, in_progress=1))
    assert scene.told == UNKNOWN_S
    scene.look(10, JobCounts(in_queue=8, in_progress=1, completed=4, failed=1))
    assert scene.told == 16  # five in ten seconds, eight to go
    scene.look(10, JobCounts(in_queue=30, in_progress=1, completed=9, failed=1))
    assert scene.told == 60


def test_own_edits_count_as_jobs_do(scene: Scene) -> None:
    scene.pace.num_waiting = 6
    scene.look(0, JobCounts())
    scene.pace.num_done = 2
    scene.look(4, JobCounts(in_queue=1))
    assert scene.told == 14


@pytest.mark.parametrize(("waiting", "expected"), [(0, MIN_S), (100_000, MAX_S)])
def test_the_wait_is_bounded(scene: Scene, waiting: int, expected: int) -> None:
    scene.look(0, JobCounts(in_progress=1))
    scene.look(10, JobCounts(in_progress=1, in_queue=waiting, completed=10))
    assert scene.told == expected


def test_idle_time_is_no_measure(scene: Scene) -> None:
    scene.look(0, JobCounts(completed=5))
    scene.look(50, JobCounts(completed=5))
    scene.look(2, JobCounts(in_queue=10, in_progress=1, completed=7))
    assert scene.told == 10  # of the last two seconds, not of the last 52


def test_old_times_are_no_measure(scene: Scene) -> None:
    scene.look(0, JobCounts(in_queue=1, in_progress=1))
    scene.look(WINDOW_S, JobCounts(in_queue=1, in_progress=1, completed=600))
    scene.look(10, JobCounts(in_queue=10, in_progress=1, completed=601))
    assert scene.told == 100


def test_a_new_jobs_replica_counts_from_nothing(scene: Scene) -> None:
    scene.look(0, JobCounts(in_queue=1, completed=500))
    scene.look(5, JobCounts(in_queue=1, completed=3))
    assert scene.told == UNKNOWN_S
    scene.look(5, JobCounts(in_queue=4, completed=8))
    assert scene.told == 4


def test_jobs_that_cannot_be_counted_leave_the_last_measure(scene: Scene) -> None:
    scene.look(0, JobCounts(in_queue=8, in_progress=1))
    scene.look(10, JobCounts(in_queue=8, in_progress=1, completed=5))
    scene.look(10, ServiceUnavailable("gone"))
    assert scene.told == 16


def test_a_storm_of_refusals_asks_the_jobs_once_a_second(scene: Scene) -> None:
    async def storm() -> None:
        for _ in range(200):
            scene.pace.retry_after_s()
        await asyncio.sleep(0)

    asyncio.run(storm())
    assert scene.jobs.num_asked == 1
    scene.now_s += LOOK_EVERY_S
    asyncio.run(storm())
    assert scene.jobs.num_asked == 2


def ignore(progress: Progress) -> None:
    pass


def counts(pace: ThroughputMeter) -> tuple[int, int, int]:
    return pace.num_waiting, pace.num_running, pace.num_done


def test_an_edit_waits_runs_and_is_done(scene: Scene) -> None:
    async def scenario() -> None:
        fake = FakeEditor(gate=asyncio.Semaphore(0))
        editor = MeteredEditor(fake, scene.pace)
        seen: list[Progress] = []
        task = asyncio.create_task(editor.edit(job("a"), SharedPictures((picture(),)), seen.append))
        assert counts(scene.pace) == (0, 0, 0)
        await until_async(lambda: counts(scene.pace) == (0, 1, 0))
        assert fake.gate is not None
        fake.gate.release()
        await task
        assert counts(scene.pace) == (0, 0, 1)
        assert seen == [Progress(0, 4)]

    asyncio.run(scenario())


@pytest.mark.parametrize("taken_up", [False, True])
def test_an_edit_that_fails_is_neither_waiting_nor_done(scene: Scene, taken_up: bool) -> None:
    class Failing(FakeEditor):
        async def edit(
            self, job: EditRequest, pictures: SharedPictures, tell: OnProgress, timeout_s: float | None = None
        ) -> EditResult:
            assert counts(scene.pace) == (1, 0, 0)
            if taken_up:
                tell(Progress(0, 1))
                assert counts(scene.pace) == (0, 1, 0)
            raise EditFailed("broken")

    with pytest.raises(EditFailed):
        asyncio.run(MeteredEditor(Failing(), scene.pace).edit(job("a"), SharedPictures((picture(),)), ignore))
    assert counts(scene.pace) == (0, 0, 0)


def test_a_refusal_tells_the_wait_in_both_dialects(tiny_settings: AppSettings) -> None:
    app = harness(tiny_settings)
    app.app.state.retry_after_s = lambda: 77
    app.editor.problem = Overloaded("full")
    response = app.edit("json")
    told(response, 429)
    assert response.headers["retry-after"] == "77"


def test_other_refusals_do_not(tiny_settings: AppSettings) -> None:
    app = harness(tiny_settings)
    app.app.state.retry_after_s = lambda: 77
    app.editor.problem = ServiceUnavailable("gone")
    assert app.edit("json").headers["retry-after"] == "5"
