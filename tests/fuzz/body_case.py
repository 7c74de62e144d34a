"""Sends one mutated body through the whole HTTP application, on fake ports that return at once."""

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import fields
from functools import cache
from typing import Any, Self

from fastapi import FastAPI

from serve_app.ingress.dialects import dialect_of
from tests.fuzz.bodies import Call
from tests.fuzz.limits import MAX_REFUSAL_BYTES, SETTINGS
from tests.ingress.openai_harness import harness


class Application:
    """The app on its own event loop."""

    def __init__(self) -> None:
        self._harness = harness(SETTINGS)
        self._harness.jobs.num_waits = 0
        self._loop = asyncio.Runner()

    @classmethod
    @cache
    def of_this_process(cls) -> Self:
        """The instance for all cases, since its threads are never stopped."""
        return cls()

    def run(self, call: Call) -> bool:
        """Whether the request was accepted.

        Raises:
            Exception: the application raised an exception that none of its handlers turns into a response.
            AssertionError: the response is neither a 200 nor a 4xx error in the dialect's format.
        """
        exchange = Exchange(call)
        self._loop.run(exchange.through(self._harness.app))
        self._forget()
        exchange.check()
        return exchange.status == 200

    def _forget(self) -> None:
        """Clear what the fake ports record, so that it does not count as a leak."""
        self._harness.shared.clear()
        for port in (self._harness.editor, self._harness.rewriter, self._harness.jobs):
            for each in fields(port):
                recorded = getattr(port, each.name)
                if isinstance(recorded, dict | list):
                    recorded.clear()


class Exchange:
    """A request and its response on the ASGI level."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._rest = _cut(call)
        self.status = 0
        self.text = b""

    def through(self, app: FastAPI) -> Coroutine[Any, Any, None]:
        content_type = self._call.content_type.encode("latin-1")
        path = self._call.path
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self._call.method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [*([(b"content-type", content_type)] if content_type else []), *self._call.headers],
            "client": ("fuzz", 1),
            "server": ("fuzz", 80),
        }
        return app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if self._rest:
            return {"type": "http.request", "body": self._rest.pop(0), "more_body": bool(self._rest)}
        await asyncio.Event().wait()  # the client stays connected; the task that waits for its disconnect is cancelled
        return {}

    async def _send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.text += message.get("body", b"")

    def check(self) -> None:
        assert self.status == 200 or 400 <= self.status < 500, f"{self.status}: {self.text[:500]!r}"
        if self.status == 200:
            return
        body = json.loads(self.text)
        assert body.keys() == ({"detail", "error"} if dialect_of(self._call.path).name == "openai" else {"error"})
        assert len(self.text) <= MAX_REFUSAL_BYTES, f"an answer of {len(self.text)} bytes"
        assert b"Traceback" not in self.text


def _cut(call: Call) -> list[bytes]:
    """The chunks in which the body arrives."""
    chunks, rest = [], call.body
    for length in call.parts:
        chunks.append(rest[:length])
        rest = rest[length:]
    return [*chunks, rest]
