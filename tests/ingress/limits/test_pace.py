"""One client's work begins at a limited rate while other clients send work."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from httpx2 import ASGITransport, AsyncClient, Response

from serve_app.config import AppSettings
from serve_app.edits.fairness import ACTIVE_S
from serve_app.errors import Overloaded, StoreFull
from serve_app.ingress.limits.pace import MAX_BURST, MAX_COUNTED_BYTES, MAX_WAIT_S, WorkPace
from tests.ingress.openai_harness import DATA_URL, EDITS, Harness, harness
from tests.waiting import until_async

PER_S = 4.0  # so that the clock adds up exactly


class Scene:
    """A pace, its clock, and how many requests of anna have begun."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pace = WorkPace(PER_S, lambda: self.now)
        self.num_begun = 0

    async def begin(self, client: str = "anna") -> None:
        await self.pace.take(client)
        self.num_begun += client == "anna"

    async def send(self, num: int) -> list["asyncio.Task[None]"]:
        """So many requests of anna at once; those that need not wait have begun."""
        tasks = [asyncio.create_task(self.begin()) for _ in range(num)]
        await settle()
        return tasks

    async def after(self, seconds: float, num_begun: int) -> None:
        """Let time pass, after which this many have begun, and no more."""
        self.now += seconds
        await until_async(lambda: self.num_begun >= num_begun)
        await settle()
        assert self.num_begun == num_begun


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def end(tasks: list["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def test_beside_another_client_a_burst_begins_at_once_and_the_rest_at_the_rate() -> None:
    async def story() -> None:
        scene = Scene()
        await scene.begin("otto")
        tasks = await scene.send(MAX_BURST + 8)
        assert scene.num_begun == MAX_BURST
        await scene.after(1 / PER_S, MAX_BURST + 1)
        await scene.after(3 / PER_S, MAX_BURST + 4)
        await scene.begin("otto")  # does not wait for anna
        await end(tasks)

    asyncio.run(story())


def test_a_client_that_is_alone_does_not_wait_and_has_its_whole_burst_when_another_comes() -> None:
    async def story() -> None:
        scene = Scene()
        await scene.send(10 * MAX_BURST)
        assert scene.num_begun == 10 * MAX_BURST
        await scene.begin("otto")
        tasks = await scene.send(MAX_BURST + 1)
        assert scene.num_begun == 11 * MAX_BURST
        scene.now += ACTIVE_S
        await asyncio.gather(*tasks)
        await scene.send(10 * MAX_BURST)
        assert scene.num_begun == 21 * MAX_BURST + 1

    asyncio.run(story())


def test_a_pause_saves_up_no_more_than_a_burst() -> None:
    async def story() -> None:
        scene = Scene()
        await scene.begin("otto")
        await scene.send(MAX_BURST)
        scene.now += ACTIVE_S - 1
        tasks = await scene.send(2 * MAX_BURST)
        assert scene.num_begun == 2 * MAX_BURST
        await end(tasks)

    asyncio.run(story())


def test_a_request_that_leaves_the_line_or_is_refused_costs_the_next_ones_nothing() -> None:
    async def story() -> None:
        scene = Scene()
        await scene.begin("otto")
        first, *others = (await scene.send(MAX_BURST + 4))[MAX_BURST:]
        await end([first, others.pop(1)])
        await scene.after(1 / PER_S, MAX_BURST + 1)
        for _ in range(2):
            scene.pace.give_back("anna")
        await scene.after(0, MAX_BURST + 2)
        await scene.send(1)
        assert scene.num_begun == MAX_BURST + 3

    asyncio.run(story())


def test_a_line_of_more_than_its_longest_wait_is_refused_and_the_others_stay_in_it() -> None:
    async def story() -> None:
        scene = Scene()
        await scene.begin("otto")
        longest = round(PER_S * MAX_WAIT_S)
        tasks = await scene.send(MAX_BURST + longest)
        with pytest.raises(Overloaded, match=r"wait for their turn already.*limits.max_work_per_s_per_key"):
            await scene.begin()
        assert scene.pace.retry_after_s("anna") == MAX_WAIT_S
        await scene.after(MAX_WAIT_S / 2, MAX_BURST + MAX_BURST)
        await scene.send(1)
        await end(tasks)

    asyncio.run(story())


def test_a_request_that_counts_as_several_begins_at_once_and_the_next_ones_wait_for_it() -> None:
    async def story() -> None:
        scene = Scene()
        await scene.begin("otto")
        await scene.pace.take("anna", MAX_BURST + 2)
        tasks = await scene.send(1)
        await scene.after(2 / PER_S, 0)
        await scene.after(1 / PER_S, 1)
        scene.pace.give_back("anna", 2)
        await scene.send(2)
        assert scene.num_begun == 3
        await end(tasks)

    asyncio.run(story())


def slow(settings: AppSettings) -> AppSettings:
    """One request in a thousand seconds."""
    return settings.model_copy(update={"limits": settings.limits.model_copy(update={"max_work_per_s_per_key": 0.001})})


def asking(scene: Harness, key: str) -> AsyncClient:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    return AsyncClient(transport=ASGITransport(scene.app), base_url="http://testserver", headers=headers)


async def two_clients(settings: AppSettings, path: str) -> tuple[AsyncClient, AsyncClient]:
    """Otto, who has sent work, so that anna is not alone, and anna."""
    scene = harness(slow(settings), api_keys=("otto:k-1", "anna:k-2"))
    otto, anna = asking(scene, "k-1"), asking(scene, "k-2")
    assert (await otto.post(path, content="no JSON")).status_code == 400
    return otto, anna


@pytest.mark.parametrize("path", ["/run", EDITS])
def test_a_request_waits_before_its_body_is_parsed_and_only_work_does(tiny_settings: AppSettings, path: str) -> None:
    async def story() -> None:
        otto, anna = await two_clients(tiny_settings, path)
        for _ in range(MAX_BURST):
            assert (await anna.post(path, content="no JSON")).status_code == 400
        waiting = asyncio.create_task(anna.post(path, content="no JSON"))
        await settle()
        refused = await anna.post(path, content="no JSON")  # a line of one is the longest
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1000")
        assert (await anna.get("/health")).status_code == 200
        assert (await otto.post(path, content="no JSON")).status_code == 400
        assert not waiting.done()
        waiting.cancel()

    asyncio.run(story())


def test_an_upload_that_stalls_holds_up_no_other_one(tiny_settings: AppSettings) -> None:
    async def story() -> None:
        _, anna = await two_clients(tiny_settings, "/run")

        async def stalls() -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

        stalled = [asyncio.create_task(anna.post("/run", content=stalls())) for _ in range(2 * MAX_BURST)]
        await settle()
        for _ in range(MAX_BURST):
            assert (await anna.post("/run", content="no JSON")).status_code == 400
        for each in stalled:
            each.cancel()

    asyncio.run(story())


def test_a_large_body_counts_as_several(tiny_settings: AppSettings) -> None:
    async def story() -> None:
        _, anna = await two_clients(tiny_settings, "/run")
        assert (await anna.post("/run", content=" " * ((MAX_BURST - 1) * MAX_COUNTED_BYTES + 1))).status_code == 400
        waiting = asyncio.create_task(anna.post("/run", content="no JSON"))
        await settle()
        assert not waiting.done()
        waiting.cancel()

    asyncio.run(story())


def test_refusals_do_not_wait(tiny_settings: AppSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        scene = harness(slow(tiny_settings), api_keys=("otto:k-1", "anna:k-2"))
        body = json.dumps({"input": {"prompt": "x", "image": DATA_URL}})

        async def refuse(job_id: str, client: str) -> None:
            raise StoreFull("full")

        monkeypatch.setattr(scene.jobs, "reserve", refuse)

        async def post(key: str) -> Response:
            return await asking(scene, key).post("/run", content=body)

        answers = [await post("k-1"), *[await post("k-2") for _ in range(3 * MAX_BURST)]]
        assert {(answer.status_code, answer.json()["error"]) for answer in answers} == {(429, "full")}

    asyncio.run(story())
