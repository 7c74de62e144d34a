"""Runs a request's edits while its client waits, and sends their events as server-sent events."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any, Literal, Self

from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from serve_app.edits.request import EditOutcome, EditRequest, Progress, SharedPictures
from serve_app.edits.service import Deadline, EditService, all_or_none
from serve_app.errors import ServiceError
from serve_app.ingress.backend import Backend
from serve_app.ingress.openai.answers import (
    Event,
    Finished,
    OpenAILook,
    OpenAIProblem,
    OpenAIStreamError,
    Preview,
    event_of,
)
from serve_app.ingress.parsing.validation import unexpected
from serve_app.ingress.pictures.prepare import Prepared

KEEP_ALIVE_S = 15.0
"""After so long without an event, a comment is sent, so that no proxy closes the connection."""

KEEP_ALIVE = b": keep-alive\n\n"


@dataclass(frozen=True)
class Paused:
    """The picture at `index` is paused after so many steps. It is sent as a comment, which OpenAI's clients skip."""

    index: int
    step: int
    num_steps: int

    @property
    def comment(self) -> bytes:
        return f": picture {self.index} is paused after {self.step} of {self.num_steps} steps\n\n".encode()


OnEvent = Callable[[Event | Paused], None]


@dataclass(frozen=True)
class DrawResult:
    """All pictures of a request, in order, and when the last one was done, in seconds since the epoch."""

    outcomes: Sequence[EditOutcome]
    at: float


Draw = Callable[[OnEvent], Coroutine[Any, Any, DrawResult]]
"""Draws all pictures of a request and reports its events; raises the error of an edit that failed."""


def drawing(backend: Backend, prepared: Prepared, deadline: Deadline) -> Draw:
    """Draws the prepared edits, with shared pictures; it keeps no others. It raises DeadlineExceeded if not all are
    done in time. When its task is cancelled, so are all edits."""
    service, shared = backend.service, [backend.share(pictures) for pictures in prepared.pictures]
    edits = [(edit, shared[index]) for edit, index in zip(prepared.edits, prepared.pictures_of, strict=True)]

    async def draw(on_event: OnEvent) -> DrawResult:
        outcomes = await all_or_none(
            _draw_one(service, index, edit, pictures, deadline, on_event)
            for index, (edit, pictures) in enumerate(edits)
        )
        return DrawResult(outcomes, time.time())

    return draw


async def _draw_one(
    service: EditService, index: int, edit: EditRequest, pictures: SharedPictures, deadline: Deadline, on_event: OnEvent
) -> EditOutcome:
    on_progress = partial(_report_progress, on_event, index, edit.num_previews, [])
    outcome = await service.run(edit, pictures, on_progress, deadline)
    on_event(Finished(index, outcome))
    return outcome


def _report_progress(
    on_event: OnEvent, index: int, num_previews: int, reported: list[Preview], progress: Progress
) -> None:
    if progress.is_paused:
        on_event(Paused(index, progress.step, progress.num_steps))
    # An edit that is repeated on another replica sends its previews again.
    if progress.preview is not None and len(reported) < num_previews:
        reported.append(Preview(index, len(reported), progress.preview))
        on_event(reported[-1])


class _Mark(Enum):
    """What a queue of events returns or holds besides them."""

    SILENCE = auto()
    END = auto()


class EventStream(EventSourceResponse):
    """A response of server-sent events that closes their generator when the client disconnects."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes], held: ExitStack) -> None:
        # nginx would hold events back until a buffer is full.
        super().__init__(_chained(first, rest), headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._rest = rest
        self._held = held

    @classmethod
    async def begun(cls, events: AsyncGenerator[bytes], held: ExitStack) -> Self:
        """The response, once there is a first event: an error before that becomes an HTTP error. `held` is closed at
        the end of either.

        Raises:
            ServiceError: of the edits, before their first event.
        """
        with held:
            return cls(await anext(events), events, held.pop_all())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette leaves the generator to the garbage collector, and raises an error when a client has disconnected.
        with self._held:
            async with aclosing(self._rest):
                with suppress(ClientDisconnect):
                    try:
                        await super().__call__(scope, receive, send)
                    except ServiceError as problem:  # the client does not take what was sent before
                        await send({"type": "http.response.body", "body": _render_error(problem)})


async def server_sent(draw: Draw, look: OpenAILook, *, alone: bool) -> AsyncGenerator[bytes]:
    """The events of `draw` as bytes. When this generator is closed, `draw` is cancelled.

    Raises:
        Exception: of `draw`, before the first event; after it, the error is sent as the last event.
    """
    begun = False
    async with aclosing(_events(draw)) as events:
        try:
            async for event in events:
                # Rendered off the event loop, since encoding pictures in base64 takes time.
                if event is _Mark.SILENCE:
                    chunk = KEEP_ALIVE
                elif isinstance(event, Paused):
                    chunk = event.comment
                else:
                    chunk = await asyncio.to_thread(_render, event, look, alone)
                begun = True
                yield chunk
        except Exception as problem:
            if not begun:
                raise
            yield _render_error(problem if isinstance(problem, ServiceError) else unexpected(problem, "a stream"))


async def _events(draw: Draw) -> AsyncGenerator[Event | Paused | Literal[_Mark.SILENCE]]:
    """The events of `draw`, and a mark after each `KEEP_ALIVE_S` without one."""
    queue: asyncio.Queue[Event | Paused | Literal[_Mark.END]] = asyncio.Queue()
    task = asyncio.create_task(draw(queue.put_nowait))
    task.add_done_callback(lambda _: queue.put_nowait(_Mark.END))
    try:
        while (event := await _next(queue)) is not _Mark.END:
            yield event
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _next(queue: asyncio.Queue[Event | Paused | Literal[_Mark.END]]) -> Event | Paused | _Mark:
    try:
        async with asyncio.timeout(KEEP_ALIVE_S):
            return await queue.get()
    except TimeoutError:
        return _Mark.SILENCE


def _render(event: Event, look: OpenAILook, alone: bool) -> bytes:
    body = event_of(event, look, alone=alone)
    return format_sse_event(event=body.type, data_str=body.model_dump_json())


def _render_error(problem: ServiceError) -> bytes:
    return format_sse_event(data_str=OpenAIStreamError(error=OpenAIProblem.of(problem)).model_dump_json())


async def _chained(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
