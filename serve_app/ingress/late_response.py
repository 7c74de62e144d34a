"""A response that is made after its route has returned."""

from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class LateResponse(Response):
    """For a response that is waited for. While a route runs, FastAPI keeps the request's body in memory, as bytes and
    as a model; when it has returned, nothing does.

    Args:
        make: awaited instead of sending this response. Its exceptions reach the same handlers as a route's.
    """

    def __init__(self, make: Callable[[], Awaitable[Response]]) -> None:
        super().__init__()
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._make()
        await response(scope, receive, send)
