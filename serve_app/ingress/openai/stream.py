"""Edits told as server-sent events while they are drawn."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from enum import Enum, auto
from typing import Literal, Self

from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from serve_app.errors import ServiceError
from serve_app.ingress.error_responses import unexpected
from serve_app.ingress.openai.answers import OpenAILook, OpenAIProblem
from serve_app.ingress.openai.drawing import Draw
from serve_app.ingress.openai.events import Event, OpenAIStreamError, event_of

KEEP_ALIVE_S = 15.0
"""Silence after which a comment is sent, so that no proxy takes the connection for dead."""

KEEP_ALIVE = b": keep-alive\n\n"


class _Mark(Enum):
    """What a queue of events holds or lacks besides them."""

    SILENCE = auto()
    END = auto()


class EventStream(StreamingResponse):
    """A response of server-sent events that ends its source when the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes]) -> None:
        # nginx would keep events back until a buffer is full.
        super().__init__(_chained(first, rest), headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._rest = rest

    @classmethod
    async def begun(cls, events: AsyncGenerator[bytes]) -> Self:
        """The response, once there is something to say: what fails before that is an HTTP error.

        Raises:
            ServiceError: what the edits failed with before their first event.
        """
        return cls(await anext(events), events)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette leaves the source to the garbage collector, and tells of a client that has gone as an error.
        async with aclosing(self._rest):
            with suppress(ClientDisconnect):
                await super().__call__(scope, receive, send)


async def server_sent(draw: Draw, look: OpenAILook, *, alone: bool) -> AsyncGenerator[bytes]:
    """The events of `draw` as bytes. When this generator is closed, the drawing is cancelled.

    Raises:
        Exception: what `draw` failed with, if nothing was sent before; else the last event tells it.
    """
    begun = False
    async with aclosing(_follow(draw)) as events:
        try:
            async for event in events:
                # Rendered off the event loop: pictures in base64 take their time.
                if event is _Mark.SILENCE:
                    chunk = KEEP_ALIVE
                else:
                    chunk = await asyncio.to_thread(_render, event, look, alone)
                begun = True
                yield chunk
        except Exception as problem:
            if not begun:
                raise
            yield _data(OpenAIStreamError(error=_told(problem)))


async def _follow(draw: Draw) -> AsyncGenerator[Event | Literal[_Mark.SILENCE]]:
    """What `draw` tells, and the silence between."""
    told: asyncio.Queue[Event | Literal[_Mark.END]] = asyncio.Queue()
    task = asyncio.create_task(draw(told.put_nowait))
    task.add_done_callback(lambda _: told.put_nowait(_Mark.END))
    try:
        while (event := await _next(told)) is not _Mark.END:
            yield event
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _next(told: asyncio.Queue[Event | Literal[_Mark.END]]) -> Event | _Mark:
    try:
        async with asyncio.timeout(KEEP_ALIVE_S):
            return await told.get()
    except TimeoutError:
        return _Mark.SILENCE


def _render(event: Event, look: OpenAILook, alone: bool) -> bytes:
    body = event_of(event, look, alone=alone)
    return f"event: {body.type}\n".encode() + _data(body)


def _data(body: BaseModel) -> bytes:
    return f"data: {body.model_dump_json()}\n\n".encode()


def _told(problem: Exception) -> OpenAIProblem:
    return OpenAIProblem.of(problem if isinstance(problem, ServiceError) else unexpected(problem, "a stream"))


async def _chained(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
