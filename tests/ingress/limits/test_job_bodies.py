"""Pictures of ended jobs: fetched and rendered once, a few at a time."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from serve_app.edits.job import Job, JobRecord, JobsPort, JobState
from serve_app.errors import JobNotFound, Overloaded
from serve_app.ingress.auth import CLIENT
from serve_app.ingress.limits import job_bodies
from serve_app.ingress.limits.budget import RESPONSE_BYTES, OutgoingBytes, ResponseBytes
from serve_app.ingress.limits.job_bodies import MAX_JOBS_PER_CLIENT, MAX_RENDERED, JobBodies
from tests.waiting import until_async

SIZE = 2**20


def completed(job_id: str) -> Job:
    return Job(job_id, JobRecord(JobState.COMPLETED, 1.0, 2.0, 3.0), 42)


class FakeJobs:
    """The part of a JobsPort that is called; each read waits for `gate`."""

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.num_reading = 0
        self.gate = asyncio.Event()

    async def read(self, job_id: str) -> Job:
        if job_id == "gone":
            raise JobNotFound(job_id)
        self.reads[job_id] += 1
        self.num_reading += 1
        try:
            await self.gate.wait()
        finally:
            self.num_reading -= 1
        return completed(job_id)


class Scene:
    def __init__(self, budget: OutgoingBytes | None = None, wait_s: float = 20.0) -> None:
        self.jobs = FakeJobs()
        self.budget = budget or OutgoingBytes(2**30, 2**30)
        self.bodies = JobBodies(cast(JobsPort, self.jobs), wait_s)
        self.num_rendered = 0
        self.held: list[ResponseBytes] = []

    def render(self, job: Job) -> bytes:
        self.num_rendered += 1
        return job.id[:1].encode() * SIZE

    def get(
        self, job_id: str, client: str = "a", form: str = "form", given: list[Job] | None = None
    ) -> "asyncio.Task[bytes]":
        async def request() -> bytes:
            CLIENT.set(client)
            self.held.append(ResponseBytes(self.budget, client))
            RESPONSE_BYTES.set(self.held[-1])
            return await self.bodies.body(job_id, form, self.render, given)

        return asyncio.create_task(request())


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 20)

    asyncio.run(bounded())


def test_two_hundred_requests_share_one_fetch_and_one_rendering() -> None:
    async def scenario() -> None:
        scene = Scene()
        requests = [scene.get("job") for _ in range(200)]
        await until_async(lambda: scene.jobs.num_reading == 1)
        requests.pop(0).cancel()  # the client that came first leaves
        scene.jobs.gate.set()
        found = await asyncio.gather(*requests[:100])
        assert len({id(body) for body in found}) == 1
        assert (scene.jobs.reads["job"], scene.num_rendered) == (1, 1)
        assert scene.budget.num_taken >= 100 * SIZE
        for task in requests:
            task.cancel()
        # Another request of the same client, and one of another, find it in the cache.
        for held in scene.held:
            held.release()
        await asyncio.gather(*requests, scene.get("job"), scene.get("job", "b"), return_exceptions=True)
        assert (scene.jobs.reads["job"], scene.num_rendered) == (1, 1)
        await scene.get("job", form="another")
        assert (scene.jobs.reads["job"], scene.num_rendered) == (2, 2)

    run(scenario)


def test_one_client_has_few_jobs_in_work_and_all_together_a_few_more() -> None:
    async def scenario() -> None:
        scene = Scene()
        requests = [scene.get(f"{number}") for number in range(40)]
        await until_async(lambda: scene.jobs.num_reading == MAX_JOBS_PER_CLIENT)
        for client in "bcde":
            requests += [scene.get(f"{client} {number}", client) for number in range(3)]
        await until_async(lambda: scene.jobs.num_reading == MAX_RENDERED)
        await asyncio.sleep(0.05)
        assert scene.jobs.num_reading == MAX_RENDERED
        scene.jobs.gate.set()
        await asyncio.gather(*requests)
        assert scene.num_rendered == len(requests)
        assert not scene.bodies._shared

    run(scenario)


def test_what_waits_for_the_budget_keeps_its_clients_place() -> None:
    async def scenario() -> None:
        scene = Scene(OutgoingBytes(per_client=2 * SIZE), wait_s=0.2)
        scene.jobs.gate.set()
        await asyncio.gather(scene.get("0"), scene.get("1"))
        first = [scene.get("2"), scene.get("3")]
        await until_async(lambda: scene.num_rendered == 4)
        first += [scene.get("2"), scene.get("3")]
        await asyncio.sleep(0)
        for leaver in first[:2]:
            leaver.cancel()  # the places belong to those who still wait
        with pytest.raises(Overloaded, match="other jobs of this API key"):
            await scene.get("4")
        assert scene.num_rendered == 4
        assert await scene.get("5", "b")
        for held in scene.held[:2]:
            held.release()
        await asyncio.gather(*first[2:])
        for held in scene.held:
            held.release()
        assert await scene.get("4")

    run(scenario)


def test_a_job_that_is_here_is_not_fetched() -> None:
    async def scenario() -> None:
        scene = Scene()
        given = [completed("here")]
        assert await scene.get("here", given=given) == b"h" * SIZE
        assert not scene.jobs.reads
        assert not given  # nobody keeps its pictures

    run(scenario)


def test_pictures_are_kept_only_while_they_can_be_rendered_at_once() -> None:
    async def scenario() -> None:
        scene = Scene()

        def clients_that_wait() -> set[str]:
            waiting = set()
            for client in "abc":
                CLIENT.set(client)
                if not scene.bodies.renders_at_once:
                    waiting.add(client)
            return waiting

        requests = [scene.get(f"{number}") for number in range(MAX_JOBS_PER_CLIENT)]
        await until_async(lambda: scene.jobs.num_reading == MAX_JOBS_PER_CLIENT)
        assert clients_that_wait() == {"a"}
        requests += [scene.get(f"b {number}", "b") for number in range(MAX_JOBS_PER_CLIENT)]
        await until_async(lambda: scene.jobs.num_reading == MAX_RENDERED)
        assert clients_that_wait() == {"a", "b", "c"}
        scene.jobs.gate.set()
        await asyncio.gather(*requests)
        await until_async(lambda: not clients_that_wait())

    run(scenario)


def test_of_many_jobs_that_end_at_once_the_pictures_of_few_are_kept() -> None:
    async def scenario() -> None:
        scene = Scene()
        scene.jobs.gate.set()
        kept: Counter[str] = Counter()

        async def answered(number: int, client: str) -> None:
            CLIENT.set(client)
            RESPONSE_BYTES.set(ResponseBytes(scene.budget, client))
            await ended.wait()
            is_kept = scene.bodies.renders_at_once
            kept[client] += is_kept
            given = [completed(f"{number}")] if is_kept else None
            await scene.bodies.body(f"{number}", "form", scene.render, given)

        ended = asyncio.Event()
        requests = [asyncio.create_task(answered(number, "abc"[number % 3])) for number in range(30)]
        await asyncio.sleep(0)
        ended.set()
        await asyncio.sleep(0)
        assert (kept.total(), max(kept.values())) == (MAX_RENDERED, MAX_JOBS_PER_CLIENT)
        for task in requests:
            task.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        CLIENT.set("a")
        await until_async(lambda: scene.bodies.renders_at_once)

    run(scenario)


def test_an_error_reaches_all_and_is_not_kept() -> None:
    async def scenario() -> None:
        scene = Scene()
        found = await asyncio.gather(*(scene.get("gone") for _ in range(3)), return_exceptions=True)
        assert [type(each) for each in found] == [JobNotFound] * 3
        assert not scene.bodies._shared

    run(scenario)


def test_the_cache_is_emptied_by_time_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_bodies, "CACHE_S", 0.05)

    async def scenario() -> None:
        scene = Scene()
        scene.jobs.gate.set()
        await scene.get("job")
        assert scene.bodies._cache.currsize == SIZE
        await until_async(lambda: scene.bodies._cache.currsize == 0)

    run(scenario)
