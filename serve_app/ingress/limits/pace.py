"""The rate at which one client's work begins while other clients send work."""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.edits.fairness import ActiveClients
from serve_app.errors import Overloaded
from serve_app.ingress.auth import CLIENT
from serve_app.ingress.dialects import is_work, route_path
from serve_app.ingress.error_responses import error_response
from serve_app.ingress.limits.requests import BodySize

MAX_BURST = 4
"""Requests of a client that begin at once after a pause."""

MAX_WAIT_S = 20.0
"""A request that would wait longer is refused."""

MAX_COUNTED_BYTES = 2 * 2**20
"""A larger body counts as several requests: its pictures take as much longer to decode."""


@dataclass
class _Line:
    """A client's token bucket, and its requests that wait for a token.

    Attributes:
        tokens: requests that may begin at the time `at`; below 0 after one that counted as several.
        num_waiting: the tokens that those in the line will take.
        turn: held by the first one that waits.
        given_back: wakes it.
    """

    tokens: float = MAX_BURST
    at: float = -math.inf
    num_waiting: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    given_back: asyncio.Event = field(default_factory=asyncio.Event)


class WorkPace:
    """A token bucket for each client: `MAX_BURST` requests begin at once; further ones wait, first come, first served,
    and `per_s` of them begin each second. A client that is alone does not wait. Lives on one event loop.

    Args:
        clock: seconds.
    """

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._max_waiting = math.ceil(per_s * MAX_WAIT_S)
        self._clock = clock
        self._active = ActiveClients(2, clock)
        self._lines: dict[str, _Line] = defaultdict(_Line)  # as many as API keys

    async def take(self, client: str, num: int = 1) -> None:
        """Take tokens once there is one.

        Args:
            num: as how many requests this one counts.

        Raises:
            Overloaded: too many of the client's requests wait.
        """
        self._active.add(client)
        line = self._lines[client]
        if line.num_waiting >= self._max_waiting:
            raise Overloaded(
                "Too many requests of this API key wait for their turn already, while other keys send work; "
                "try again later (limits.max_work_per_s_per_key)."
            )
        line.num_waiting += num
        try:
            async with line.turn:
                while (wait_s := self._wait_s(client, line)) > 0:
                    line.given_back.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(wait_s):
                            await line.given_back.wait()
                line.tokens -= num
        finally:
            line.num_waiting -= num

    def give_back(self, client: str, num: int = 1) -> None:
        """Give back the tokens of a request that was refused."""
        self._lines[client].tokens += num
        self._lines[client].given_back.set()

    def retry_after_s(self, client: str) -> int:
        """Seconds until all that waits now has begun."""
        return math.ceil(self._lines[client].num_waiting / self._per_s)

    def _wait_s(self, client: str, line: _Line) -> float:
        """Seconds until the client's next token, if none is given back; 0: there is one."""
        now = self._clock()
        line.tokens = min(MAX_BURST, line.tokens + self._per_s * (now - line.at))
        line.at = now
        if self._active.is_alone(client):
            line.tokens = MAX_BURST + 1  # this request takes at least one
        return max(0.0, (1 - line.tokens) / self._per_s)


class PacedWork:
    """Has requests that ask for edits wait for their client's turn once their body, or its first part, is here: an
    upload that stalls holds up no other one. A request that is answered with 429 does not count: refusing it again at
    once costs little."""

    def __init__(self, app: ASGIApp, per_s: float) -> None:
        self._app = app
        self._pace = WorkPace(per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_work(scope["method"], route_path(scope)):
            await self._app(scope, receive, send)
            return
        client, num = CLIENT.get(), _num_requests(scope)
        received = [await receive()]
        try:
            await self._pace.take(client, num)
        except Overloaded as problem:
            response = error_response(scope["path"], problem)
            response.headers["retry-after"] = str(self._pace.retry_after_s(client))
            await response(scope, receive, send)
            return

        async def receive_again() -> Message:
            return received.pop() if received else await receive()

        async def send_and_learn(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == HTTPStatus.TOO_MANY_REQUESTS:
                self._pace.give_back(client, num)
            await send(message)

        await self._app(scope, receive_again, send_and_learn)


def _num_requests(scope: Scope) -> int:
    """As how many requests this one counts, by its Content-Length."""
    announced = BodySize(scope, 0).announced
    return max(1, math.ceil((announced or 0) / MAX_COUNTED_BYTES))
