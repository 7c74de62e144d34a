"""Admission: which requests get a place, and what the others are answered."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from httpx2 import ASGITransport, AsyncClient, Response

from serve_app.config import AppSettings
from serve_app.edits.job import JobsPort
from serve_app.errors import InvalidInput, Overloaded, ServiceError, ServiceUnavailable, StoreFull
from serve_app.ingress.admission import FULL_S, UNRESERVED_S, QueuePlaces
from serve_app.ingress.app import build_app
from serve_app.ingress.limits.report import LIMITS_HEADER
from serve_app.ingress.openai import stream as openai_stream
from serve_app.ingress.pictures.prepare import ParsedRequest, Prepared, Preparer
from tests.ingress.openai_harness import DATA_URL, EDITS, Call, Harness, harness
from tests.waiting import until_async


class Queue:
    """A queue with places, and a clock."""

    def __init__(self, num_places: int) -> None:
        self.num_places = num_places
        self.num_calls = 0
        self.num_unreserved = 0
        self.released: list[str] = []
        self.now = 100.0
        self.places = QueuePlaces(cast(JobsPort, self), clock=lambda: self.now)

    async def reserve(self, job_id: str, client: str) -> int:
        self.num_calls += 1
        await asyncio.sleep(0)  # as over a handle
        if self.num_places == 0:
            raise StoreFull("full for you")
        self.num_places -= 1
        return self.num_unreserved

    async def release(self, job_id: str) -> None:
        self.released.append(job_id)

    async def is_admitted(self, client: str = "", problem: Exception | None = None) -> bool:
        """Whether a request was prepared and submitted. `problem`: raised instead of submitting it."""
        try:
            async with self.places.hold("job", client):
                await asyncio.sleep(0)
                if problem is not None:
                    raise problem
        except StoreFull as problem:
            return problem.message != "full for you"
        return True


def test_jobs_are_submitted_without_a_place_as_long_as_the_queue_allows() -> None:
    async def story() -> None:
        queue = Queue(100)
        queue.num_unreserved = 3
        for num_calls in (1, 1, 1, 1, 2):
            assert await queue.is_admitted("anna")
            assert queue.num_calls == num_calls
        assert await queue.is_admitted("otto")
        assert queue.num_calls == 3
        queue.now += UNRESERVED_S
        assert await queue.is_admitted("anna")
        assert queue.num_calls == 4

    asyncio.run(story())


def test_no_more_jobs_are_prepared_at_once_without_a_place_than_the_queue_allows() -> None:
    async def story() -> None:
        queue = Queue(100)
        queue.num_unreserved = 3
        is_prepared = asyncio.Event()

        async def prepare(client: str) -> None:
            async with queue.places.hold("job", client):
                await is_prepared.wait()

        async def num_reserved(client: str, num_jobs: int) -> int:
            before = queue.num_calls
            for _ in range(num_jobs):
                preparing.append(asyncio.create_task(prepare(client)))
                for _ in range(3):  # until Jobs has answered
                    await asyncio.sleep(0)
            return queue.num_calls - before

        preparing: list[asyncio.Task[None]] = []
        assert await num_reserved("anna", 1) == 1
        assert await num_reserved("anna", 9) == 6
        assert await num_reserved("otto", 5) == 5
        queue.now += UNRESERVED_S
        assert await num_reserved("anna", 5) == 5
        is_prepared.set()
        await asyncio.gather(*preparing)
        assert await num_reserved("anna", 3) == 0

    asyncio.run(story())


@pytest.mark.parametrize("problem", [Overloaded("full"), ServiceUnavailable("away"), InvalidInput("bad")])
def test_after_a_failure_the_next_job_takes_a_place_first(problem: ServiceError) -> None:
    async def story() -> None:
        queue = Queue(100)
        queue.num_unreserved = 3
        assert await queue.is_admitted()
        with pytest.raises(type(problem)):
            await queue.is_admitted(problem=problem)
        queue.now += FULL_S
        await asyncio.sleep(0)
        assert queue.released == []  # no place was held for it
        assert await queue.is_admitted()
        assert queue.num_calls == 2

    asyncio.run(story())


def test_of_many_at_once_as_many_are_let_in_as_there_are_places() -> None:
    async def story() -> None:
        queue = Queue(3)
        assert (await asyncio.gather(*(queue.is_admitted() for _ in range(20)))).count(True) == 3
        assert queue.released == []

    asyncio.run(story())


def test_a_refusal_is_repeated_to_its_client_for_a_moment_and_to_no_other() -> None:
    async def story() -> None:
        queue = Queue(0)
        assert [await queue.is_admitted("anna") for _ in range(5)] == [False] * 5
        assert queue.num_calls == 1
        queue.num_places = 2
        assert await queue.is_admitted("otto")
        queue.now += FULL_S / 2
        assert not await queue.is_admitted("anna")
        queue.now += FULL_S / 2
        assert await queue.is_admitted("anna")

    asyncio.run(story())


def test_a_request_that_fails_or_leaves_gives_its_place_back() -> None:
    async def story() -> None:
        queue = Queue(9)
        with pytest.raises(ValueError, match="bad picture"):
            async with queue.places.hold("failed", ""):
                raise ValueError("bad picture")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0), queue.places.hold("left", ""):
                await asyncio.Event().wait()
        await until_async(lambda: queue.released == ["failed", "left"])
        with pytest.raises(Overloaded):
            async with queue.places.hold("refused by submit", ""):
                raise Overloaded("full")
        await asyncio.sleep(0)
        assert "refused by submit" not in queue.released  # submit has used the place

    asyncio.run(story())


def num_prepared(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Counts the requests whose pictures are prepared from now on."""
    prepared: list[str] = []
    prepare = Preparer.__call__

    async def counted(preparer: Preparer, request_id: str, parsed: ParsedRequest) -> Prepared:
        prepared.append(request_id)
        return await prepare(preparer, request_id, parsed)

    monkeypatch.setattr(Preparer, "__call__", counted)
    return lambda: len(prepared)


def test_a_full_queue_answers_429_without_preparing_pictures_and_knows_its_jobs(
    tiny_settings: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = harness(tiny_settings, api_keys=("acme:k-1", "k-2"))
    num_done = num_prepared(monkeypatch)

    async def refuse(job_id: str, client: str) -> int:
        if client == "acme":
            raise StoreFull("full")
        return 0

    def run(key: str, repeat_key: str) -> tuple[int, str]:
        headers = {"authorization": f"Bearer {key}", "Idempotency-Key": repeat_key}
        body = {"input": {"prompt": "x", "image": DATA_URL}}
        response = scene.client.post("/run", json=body, headers=headers)
        return response.status_code, response.headers.get("retry-after", "")

    assert run("k-1", "known") == (200, "")
    assert [spec.client for spec in scene.jobs.specs.values()] == ["acme"]
    assert [edit.client for spec in scene.jobs.specs.values() for edit in spec.edits] == ["acme"]
    with monkeypatch.context() as patch:
        patch.setattr(scene.jobs, "reserve", refuse)
        for number in range(5):
            status, retry_after = run("k-1", f"new {number}")
            assert (status, int(retry_after) > 0) == (429, True)
        assert run("k-1", "known") == (200, "")
        assert run("k-2", "another client's") == (200, "")
    assert num_done() == 2


@pytest.mark.parametrize("path", ["/run", EDITS])
def test_a_client_that_was_just_refused_is_refused_before_its_body_is_read(
    path: str, tiny_settings: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = harness(tiny_settings)
    fields = {"prompt": "x", "image": DATA_URL}
    body = json.dumps({"input": fields} if path == "/run" else fields)

    async def refuse(job_id: str, client: str) -> None:
        raise StoreFull("full")

    def post(content: str, repeat_key: str) -> int:
        headers = {"content-type": "application/json", "idempotency-key": repeat_key}
        return scene.client.post(path, content=content, headers=headers).status_code

    assert post(body, "known") == 200
    monkeypatch.setattr(scene.jobs, "reserve", refuse)
    monkeypatch.setattr("serve_app.ingress.admission.FULL_S", 60.0)
    assert post("no JSON", "new") == 400
    assert post(body, "new") == 429
    assert post("no JSON", "new") == 429
    assert post(body, "known") == 200
    assert post("no JSON", "known") == 400


def test_a_picture_that_cannot_be_read_releases_its_place(tiny_settings: AppSettings) -> None:
    scene = harness(tiny_settings)
    assert scene.client.post("/run", json={"input": {"prompt": "x", "image": "aGVsbG8="}}).status_code == 400
    assert scene.jobs.released == scene.jobs.reserved != []
    assert scene.client.post("/run", json={"input": {"prompt": "x", "image": DATA_URL}}).status_code == 200
    assert len(scene.jobs.released) == 1


def few_places(settings: AppSettings, num: int) -> AppSettings:
    return settings.model_copy(update={"editor": settings.editor.model_copy(update={"max_waiting_edits": num})})


async def post_all(scene: Harness, num: int, key: str = "", **fields: Any) -> list[asyncio.Task[Response]]:
    """Edits without a job, sent one after another while none of them ends."""
    headers = {"authorization": f"Bearer {key}"}
    client = AsyncClient(transport=ASGITransport(scene.app), base_url="http://testserver", headers=headers)
    body = {"prompt": "x", "image": DATA_URL, **fields}
    return [asyncio.create_task(client.post(EDITS, json=body)) for _ in range(num)]


async def first_done(tasks: list[asyncio.Task[Response]], num: int) -> list[Response]:
    await until_async(lambda: sum(task.done() for task in tasks) == num)
    return [task.result() for task in tasks if task.done()]


@pytest.mark.parametrize("fields", [{}, {"stream": True, "partial_images": 1}])
def test_of_20_edits_without_a_job_as_many_are_accepted_as_there_are_places_and_the_others_not_decoded(
    tiny_settings: AppSettings, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    async def story() -> None:
        scene = harness(few_places(tiny_settings, 3))
        scene.editor.gate = asyncio.Semaphore(0)
        num_done = num_prepared(monkeypatch)
        for _ in range(2):  # The places are free again.
            before = num_done()
            tasks = await post_all(scene, 20, **fields)
            refused = await first_done(tasks, 17)
            assert {response.status_code for response in refused} == {429}
            assert all(int(response.headers["retry-after"]) > 0 for response in refused)
            assert num_done() - before == 3
            for _ in range(3):
                scene.editor.gate.release()
            statuses = [response.status_code for response in await asyncio.gather(*tasks)]
            assert statuses.count(200) == 3

    asyncio.run(story())


def test_an_edit_without_a_job_leaves_its_places_when_it_fails_or_its_client_goes(tiny_settings: AppSettings) -> None:
    async def story() -> None:
        scene = harness(few_places(tiny_settings, 2))
        scene.editor.gate = asyncio.Semaphore(0)
        for stream in (False, True):
            (gone,) = await post_all(scene, 1, n=2, stream=stream)
            before = len(scene.editor.requests)
            await until_async(lambda before=before: len(scene.editor.requests) == before + 2)  # type: ignore[misc]
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        (bad,) = await post_all(scene, 1, image="aGVsbG8=")
        assert (await bad).status_code == 400
        tasks = await post_all(scene, 3)
        await first_done(tasks, 1)
        for _ in range(2):
            scene.editor.gate.release()
        assert sorted(response.status_code for response in await asyncio.gather(*tasks)) == [200, 200, 429]

    asyncio.run(story())


def error_code(response: Response) -> str:
    assert response.status_code == 429
    return str(response.json()["error"]["code"])


def test_beside_another_key_one_key_takes_its_part_and_the_proxy_does_not_refuse_the_other(
    tiny_settings: AppSettings,
) -> None:
    async def story() -> None:
        scene = harness(few_places(tiny_settings, 8), api_keys=("anna:k-1", "otto:k-2"))
        scene.app = build_app(replace(scene.backend, behind_serve=True))
        scene.editor.gate = asyncio.Semaphore(0)
        tasks = await post_all(scene, 1, "k-2")
        await until_async(lambda: len(scene.editor.requests) == 1)
        tasks += await post_all(scene, 20, "k-1")
        for response in await first_done(tasks, 14):
            assert error_code(response) == "key_places_taken"
            assert int(response.headers["retry-after"]) > 0
            assert "queue_full=2" in response.headers[LIMITS_HEADER]
        tasks += await post_all(scene, 2, "k-2")
        (full,) = [each for each in await first_done(tasks, 15) if error_code(each) == "overloaded"]
        assert "queue_full=1" in full.headers[LIMITS_HEADER]
        for _ in range(8):
            scene.editor.gate.release()
        statuses = [response.status_code for response in await asyncio.gather(*tasks)]
        assert statuses.count(200) == 8

    asyncio.run(asyncio.wait_for(story(), 20))


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
def test_a_stream_keeps_its_place_until_its_client_goes(
    tiny_settings: AppSettings, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    monkeypatch.setattr(openai_stream, "KEEP_ALIVE_S", 0.05)

    async def story() -> None:
        scene = harness(few_places(tiny_settings, 1))
        scene.editor.gate = asyncio.Semaphore(0)
        fields = {"prompt": "x", "image": DATA_URL, "stream": True}
        call = Call(scene.app, fields, spec=spec, content_type="application/json")
        await until_async(lambda: "keep-alive" in call.text)
        (refused,) = await post_all(scene, 1)
        assert (await refused).status_code == 429
        call.left.set()
        await asyncio.wait([call.task], timeout=5)
        scene.editor.gate.release()
        (accepted,) = await post_all(scene, 1)
        assert (await accepted).status_code == 200

    asyncio.run(asyncio.wait_for(story(), 20))


def test_a_request_for_more_edits_than_places_is_accepted_alone(tiny_settings: AppSettings) -> None:
    scene = harness(few_places(tiny_settings, 1))
    assert scene.edit("json", n=4).status_code == 200
