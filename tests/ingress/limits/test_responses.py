"""The budget of responses that clients have not taken yet, and the middleware that spends it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.responses import Response, StreamingResponse
from starlette.types import Message

from serve_app.errors import Overloaded
from serve_app.ingress.auth import CLIENT
from serve_app.ingress.limits.budget import COUNTED_BYTES, OutgoingBytes, ResponseBytes
from serve_app.ingress.limits.responses import CHUNK_BYTES, ResponseLimits
from serve_app.ingress.openai.stream import EventStream
from tests.waiting import until_async

LARGE = 4 * CHUNK_BYTES


def begun(work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    return asyncio.create_task(work)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 20)

    asyncio.run(bounded())


def test_bytes_are_taken_in_order_and_one_clients_wait_does_not_delay_another() -> None:
    async def scenario() -> None:
        budget = OutgoingBytes(total=100, per_client=60)
        await budget.take("a", 50)
        large, small = begun(budget.take("a", 40)), begun(budget.take("a", 5))
        other, last = begun(budget.take("b", 45)), begun(budget.take("b", 10))
        await settled()
        # `small` would fit, but not before `large`; `last` would exceed the total.
        assert [task.done() for task in (large, small, other, last)] == [False, False, True, False]
        budget.give_back("a", 50)
        await settled()
        assert [task.done() for task in (large, small, last)] == [True, True, True]
        assert budget.num_taken == 100

    run(scenario)


def test_smaller_responses_do_not_overtake_one_that_waits_for_the_total() -> None:
    async def scenario() -> None:
        budget = OutgoingBytes(total=100, per_client=60)
        await budget.take("a", 50)
        await budget.take("b", 30)
        large = begun(budget.take("c", 50))
        small = begun(budget.take("d", 10))
        await settled()
        assert (large.done(), small.done()) == (False, False)
        budget.give_back("b", 30)
        await large
        budget.give_back("c", 50)
        await small

    run(scenario)


def test_a_response_above_all_limits_passes_alone() -> None:
    async def scenario() -> None:
        budget = OutgoingBytes(total=100, per_client=60)
        await budget.take("a", 1000)
        second = begun(budget.take("b", 1))
        await settled()
        assert not second.done()
        budget.give_back("a", 1000)
        await second

    run(scenario)


def test_waiting_ends_with_a_429_and_a_cancelled_wait_takes_nothing() -> None:
    async def scenario() -> None:
        budget = OutgoingBytes(total=100, per_client=60, wait_s=0.05)
        await budget.take("a", 60)
        with pytest.raises(Overloaded, match="not read yet"):
            await budget.take("a", 1)
        waiting = begun(budget.take("a", 1))
        await settled()
        waiting.cancel()
        granted = begun(budget.take("b", 40))
        await asyncio.gather(waiting, granted, return_exceptions=True)
        # Granted and cancelled before it has run on.
        late = begun(budget.take("a", 1))
        await settled()
        budget.give_back("a", 60)
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        assert budget.num_taken == 40

    run(scenario)


def test_events_count_until_they_expire_or_the_response_ends() -> None:
    async def scenario() -> None:
        budget = OutgoingBytes()
        held = ResponseBytes(budget, "a", event_s=0.05)
        await held.reserve(2 * LARGE)
        for _ in range(2):
            await held.reserve(LARGE)  # reserved already
            held.sent_event(LARGE)
        assert budget.num_taken == 2 * LARGE
        await until_async(lambda: budget.num_taken == 0)
        await held.reserve(COUNTED_BYTES - 1)
        assert budget.num_taken == 0
        await held.reserve(COUNTED_BYTES)
        held.release()
        held.release()
        assert budget.num_taken == 0

    run(scenario)


class Client:
    """Requests a response through the middleware, and takes it when the test says so."""

    def __init__(self, response: Response, budget: OutgoingBytes, name: str = "a", **limits: float) -> None:
        self.messages: list[Message] = []
        self.took = asyncio.Event()
        CLIENT.set(name)
        scope = {"type": "http", "method": "GET", "path": "/status/job", "headers": []}
        app = ResponseLimits(response, budget, **limits)
        self.task = asyncio.create_task(app(scope, self._receive, self._send))  # with a context of its own

    async def _receive(self) -> Message:
        await self.took.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def chunks(self) -> list[bytes]:
        return [message["body"] for message in self.messages[1:]]


def test_a_response_counts_until_its_client_has_taken_it() -> None:
    async def scenario() -> None:
        budget = OutgoingBytes(total=2 * LARGE, per_client=LARGE)
        body = bytes(range(256)) * (LARGE // 256)
        first, second = Client(Response(body), budget), Client(Response(body), budget)
        other, small = Client(Response(body), budget, "b"), Client(Response(b"small"), budget)
        await small.task
        await settled()
        assert b"".join(first.chunks) == body
        assert [len(chunk) for chunk in first.chunks] == [CHUNK_BYTES] * 4
        assert [message["more_body"] for message in first.messages[1:]] == [True, True, True, False]
        assert (budget.num_taken, second.messages, len(other.chunks)) == (2 * LARGE, [], 4)
        first.took.set()
        await first.task
        await settled()
        assert second.status == 200
        second.task.cancel()  # as Serve does when the connection breaks
        other.took.set()
        await asyncio.gather(second.task, other.task, return_exceptions=True)
        assert budget.num_taken == 0

    run(scenario)


def test_few_responses_of_a_client_begin_at_once() -> None:
    async def scenario() -> None:
        budget = OutgoingBytes(starting_per_client=LARGE)
        slow, second, third = (Client(Response(bytes(LARGE)), budget) for _ in range(3))
        other = Client(Response(bytes(LARGE)), budget, "b")
        await settled()
        assert [len(each.messages) > 0 for each in (slow, second, third, other)] == [True, False, False, True]
        await until_async(lambda: bool(second.messages))  # `slow` has begun long enough ago
        assert third.messages == []
        second.took.set()
        await second.task
        await settled()
        assert third.status == 200
        for client in (slow, third, other):
            client.took.set()
            await client.task
        assert (budget.num_taken, budget.starting.num_taken) == (0, 0)

    run(scenario)


def test_the_events_of_a_stream_begin_one_after_the_other() -> None:
    async def scenario() -> None:
        async def events() -> AsyncGenerator[bytes]:
            for number in range(2):
                yield bytes([number]) * LARGE

        budget = OutgoingBytes(starting_per_client=LARGE)
        client = Client(StreamingResponse(events()), budget)
        await settled()
        assert b"".join(client.chunks) == bytes(LARGE)
        await until_async(lambda: len(b"".join(client.chunks)) == 2 * LARGE)
        client.took.set()
        await client.task
        assert (budget.num_taken, budget.starting.num_taken) == (0, 0)

    run(scenario)


def test_a_response_that_may_not_begin_in_time_becomes_a_429() -> None:
    async def scenario() -> None:
        budget = OutgoingBytes(starting_per_client=LARGE, wait_s=0.05)
        first, refused = (Client(Response(bytes(LARGE)), budget) for _ in range(2))
        await refused.task
        assert refused.status == 429
        assert b"begin at once" in b"".join(refused.chunks)
        assert budget.num_taken == LARGE
        first.took.set()
        await first.task

    run(scenario)


def test_a_client_that_leaves_before_its_response_begins_holds_nothing() -> None:
    async def scenario() -> None:
        budget = OutgoingBytes(starting_per_client=LARGE)
        first, second = (Client(Response(bytes(LARGE)), budget) for _ in range(2))
        await settled()
        second.task.cancel()
        first.took.set()
        await asyncio.gather(first.task, second.task, return_exceptions=True)
        assert (budget.num_taken, budget.starting.num_taken) == (0, 0)

    run(scenario)


def test_a_client_that_never_takes_its_response_holds_it_for_a_bounded_time_and_others_get_a_429() -> None:
    async def scenario() -> None:
        budget = OutgoingBytes(per_client=LARGE, wait_s=0.05)
        stalled = Client(Response(bytes(LARGE)), budget, taken_s=0.3)
        await settled()
        refused = Client(Response(bytes(LARGE)), budget)
        await refused.task
        assert refused.status == 429
        assert dict(refused.messages[0]["headers"])[b"retry-after"]
        assert b"not read yet" in b"".join(refused.chunks)
        await stalled.task
        assert budget.num_taken == 0

    run(scenario)


def test_a_stream_whose_event_finds_no_room_ends_with_an_error() -> None:
    async def scenario() -> None:
        async def rest() -> AsyncGenerator[bytes]:
            for _ in range(2):
                yield bytes(LARGE)

        budget = OutgoingBytes(per_client=LARGE, wait_s=0.05)
        client = Client(EventStream(b"first", rest(), ExitStack()), budget, taken_s=0.05)
        await client.task
        assert len(b"".join(client.chunks[:-1])) == len(b"first") + LARGE
        assert b'"code":"overloaded"' in client.chunks[-1]
        assert [message["more_body"] for message in client.messages[-2:]] == [True, False]
        assert budget.num_taken == 0

    run(scenario)


def test_the_events_of_a_stream_take_their_bytes_one_by_one() -> None:
    async def scenario() -> None:
        async def events() -> AsyncGenerator[bytes]:
            yield b"small"
            for number in range(3):
                yield bytes([number]) * LARGE

        budget = OutgoingBytes(per_client=2 * LARGE)
        client = Client(StreamingResponse(events()), budget)
        await settled()
        assert (client.status, budget.num_taken) == (200, 2 * LARGE)
        assert len(client.chunks) == 1 + 2 * 4
        client.task.cancel()
        await asyncio.gather(client.task, return_exceptions=True)
        assert budget.num_taken == 0

    run(scenario)
