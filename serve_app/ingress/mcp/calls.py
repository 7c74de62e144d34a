"""The tool calls that run, so that a `notifications/cancelled` can end them.

Clients of the protocol of 2026-07-28 cancel by closing the response, so they need none of this. Those of the earlier
ones post a notification, which any replica may receive. The session id, random and returned by `initialize`,
distinguishes one client's request numbers from another's; replicas keep nothing else about a session.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import anyio


class CallId(NamedTuple):
    """A tool call: `Key.client` of its API key, its session, and its number there."""

    client: str
    session: str
    request: str | int


class OpenCalls:
    """The calls of one ingress replica. Lives on one event loop."""

    def __init__(self) -> None:
        self._scopes: dict[CallId, anyio.CancelScope] = {}

    @contextmanager
    def cancellable(self, call: CallId | None) -> Iterator[anyio.CancelScope]:
        """A scope that `cancel` ends; None: the call has no session, so nothing names it."""
        with anyio.CancelScope() as scope:
            if call is not None:
                self._scopes[call] = scope
            try:
                yield scope
            finally:
                if call is not None and self._scopes.get(call) is scope:
                    del self._scopes[call]

    def cancel(self, call: CallId) -> bool:
        """Cancel a call; returns whether it ran here."""
        scope = self._scopes.get(call)
        if scope is not None:
            scope.cancel()
        return scope is not None


CancelElsewhere = Callable[[CallId], Awaitable[object]]
"""Cancels a call in the other replicas."""
