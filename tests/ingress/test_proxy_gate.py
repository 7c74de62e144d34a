"""A queue that was full a moment ago: who is refused in the proxy, and who is let through."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from serve_app.ingress import proxy_gate
from serve_app.ingress.proxy_gate import FULL_S, LIMIT_HEADER, QueueFullMiddleware, QueueLimitHeader

RUN, EDITS = "/v2/mine/run", "/v1/images/edits"


@dataclass
class Counted:
    """In place of Ray's metrics."""

    ended_with: list[tuple[str, int]] = field(default_factory=list)

    def ended(self, dialect: str, route: str, key: str, status: int, seconds: float) -> None:
        self.ended_with.append((dialect, status))


@dataclass
class Behind:
    """An application that answers with the next of these statuses, once it may, and a clock."""

    counted: Counted
    now: float = 100.0
    statuses: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    app: Starlette = field(init=False)

    def __post_init__(self) -> None:
        async def answer(request: Request) -> JSONResponse:
            self.asked.append(request.url.path)
            await request.body()
            await self.may_answer.wait()
            return JSONResponse({"from": "app"}, self.statuses.pop(0), {"retry-after": "42"})

        app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
        self.may_answer.set()
        self.app = app
        self.client = TestClient(self.gate(limit=1000))

    def gate(self, limit: int) -> QueueFullMiddleware:
        """Before an application whose queue has so many places."""
        return QueueFullMiddleware(QueueLimitHeader(self.app, limit), clock=lambda: self.now)

    def clients(self, limit: int) -> httpx2.AsyncClient:
        """Of another gate, for requests at the same time."""
        return httpx2.AsyncClient(transport=httpx2.ASGITransport(self.gate(limit)), base_url="http://gate")

    async def asks(self, count: int) -> None:
        """Wait until so many requests have come."""
        while len(self.asked) < count:
            await asyncio.sleep(0)


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> Behind:
    counted = Counted()
    monkeypatch.setattr(proxy_gate, "RequestMetrics", lambda: counted)
    return Behind(counted)


def test_after_a_429_the_next_ones_are_told_the_same_without_the_application(behind: Behind) -> None:
    behind.statuses = [429, 200]
    assert behind.client.post(RUN).json() == {"from": "app"}
    refused = behind.client.post("/runsync", headers={"x-request-id": "mine"})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "42")
    assert refused.headers["x-request-id"] == "mine"
    assert "try again later" in refused.json()["error"]
    assert behind.client.post(RUN).headers["x-request-id"].startswith("req-")
    assert behind.asked == [RUN]
    assert behind.counted.ended_with == [("runpod", 429)] * 2
    behind.now += FULL_S
    assert behind.client.post(RUN).status_code == 200


def test_one_at_a_time_tries_until_there_is_room(behind: Behind) -> None:
    behind.statuses = [429, 429, 200, 200, 200]
    told = []
    for _ in range(3):
        told.append([behind.client.post(RUN).status_code for _ in range(2)])
        behind.now += FULL_S
    assert told == [[429, 429], [429, 429], [200, 200]]
    assert len(behind.asked) == 4


def test_one_who_tries_and_dawdles_closes_it_to_nobody_for_long(behind: Behind) -> None:
    async def ask() -> list[int]:
        async with behind.clients(limit=1000) as client:
            behind.statuses = [429, 200, 200]
            told = [(await client.post(RUN)).status_code]
            behind.now += FULL_S
            behind.may_answer.clear()
            dawdler = asyncio.create_task(client.post(RUN))
            await behind.asks(2)
            told.append((await client.post(RUN)).status_code)
            behind.may_answer.set()
            behind.now += FULL_S
            return [*told, (await client.post(RUN)).status_code, (await dawdler).status_code]

    assert asyncio.run(ask()) == [429, 429, 200, 200]


def test_a_queue_that_was_full_long_ago_is_not(behind: Behind) -> None:
    behind.statuses = [429, 200, 200]
    behind.client.post(RUN)
    behind.now += 2 * FULL_S
    assert [behind.client.post(RUN).status_code for _ in range(2)] == [200, 200]


def test_who_came_before_the_queue_was_full_does_not_open_it(behind: Behind) -> None:
    async def ask() -> list[int]:
        async with behind.clients(limit=1000) as client:
            behind.may_answer.clear()
            early = [asyncio.create_task(client.post(RUN)) for _ in range(2)]
            await behind.asks(2)
            behind.statuses = [429, 200, 200]
            behind.may_answer.set()
            return [(await each).status_code for each in early] + [(await client.post(RUN)).status_code]

    assert asyncio.run(ask()) == [429, 200, 429]


def test_no_more_are_let_in_at_once_than_the_queue_has_places(behind: Behind) -> None:
    """Three places, told by the first answer. What is being asked or has just been queued takes one."""
    behind.statuses = [200] * 9

    async def ask() -> None:
        async with behind.clients(limit=3) as client:
            assert (await client.post("/runsync")).headers[LIMIT_HEADER] == "3"
            assert (await client.post(RUN)).status_code == 200
            behind.may_answer.clear()
            taken = [asyncio.create_task(client.post(path)) for path in (RUN, "/runsync")]
            await behind.asks(4)
            refused = await client.post(RUN)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            behind.now += FULL_S  # The one that was queued may have ended.
            taken.append(asyncio.create_task(client.post(RUN)))
            await behind.asks(5)
            assert (await client.post(RUN)).status_code == 429
            behind.may_answer.set()
            assert [(await each).status_code for each in taken] == [200] * 3
            assert (await client.post("/runsync")).status_code == 200  # The two that were queued are two of three.

    asyncio.run(ask())


def test_a_body_that_dawdles_takes_no_place(behind: Behind) -> None:
    behind.statuses = [200] * 3

    async def ask() -> list[int]:
        async with behind.clients(limit=1) as client:
            go_on = asyncio.Event()

            async def body() -> AsyncIterator[bytes]:
                yield b"{"
                await go_on.wait()
                yield b"}"

            await client.post("/runsync")
            slow = asyncio.create_task(client.post("/runsync", content=body()))
            await asyncio.sleep(0.05)
            quick = await client.post("/runsync")
            go_on.set()
            return [quick.status_code, (await slow).status_code]

    assert asyncio.run(ask()) == [200, 200]


@pytest.mark.parametrize("status", [200, 401, 422, 503])
def test_no_other_answer_closes_it(behind: Behind, status: int) -> None:
    behind.statuses = [status, 200]
    behind.client.post(RUN)
    assert behind.client.post(RUN).status_code == 200


def test_each_dialect_has_its_own_queue(behind: Behind) -> None:
    behind.statuses = [429, 200, 200, 429]
    behind.client.post(RUN)
    assert behind.client.post(EDITS).status_code == 200
    behind.now += FULL_S
    assert behind.client.post(RUN).status_code == 200
    behind.client.post(EDITS)
    refused = behind.client.post(EDITS)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
    assert behind.counted.ended_with == [("openai", 429)]


def test_what_is_no_new_work_passes(behind: Behind) -> None:
    behind.statuses = [429, 200, 200, 200]
    behind.client.post(RUN)
    assert behind.client.get("/v2/mine/status/1").status_code == 200
    assert behind.client.post("/v2/mine/cancel/1").status_code == 200
    assert behind.client.post(RUN, headers={"Idempotency-Key": "k"}).status_code == 200


def test_a_key_that_is_sent_again_and_again_takes_no_more_memory_than_the_queue_has_places(behind: Behind) -> None:
    behind.statuses = [200] * 20
    gate = behind.gate(limit=3)
    client = TestClient(gate)
    for _ in range(20):
        assert client.post(RUN, headers={"Idempotency-Key": "k"}).status_code == 200
    assert {name: len(queue.queued_at) for name, queue in gate._queues.items()} == {"runpod": 3, "openai": 0}


def test_without_a_limit_only_the_last_moment_is_kept(behind: Behind) -> None:
    behind.statuses = [200] * 20
    gate = QueueFullMiddleware(behind.app, clock=lambda: behind.now)
    client = TestClient(gate)
    for _ in range(20):
        client.post(RUN, headers={"Idempotency-Key": "k"})
        behind.now += FULL_S / 4
    assert len(gate._queues["runpod"].queued_at) == 4
