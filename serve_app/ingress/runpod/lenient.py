"""JSON as shell scripts write it.

A script that pastes the output of GNU `base64` into a JSON string leaves the tool's bare line breaks in it. Strict JSON
forbids them, yet what is meant is plain, and the users' documented script does just that.
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class LenientRequest(Request):
    async def json(self) -> Any:
        return json.loads(await self.body(), strict=False)


class LenientRoute(APIRoute):
    """A route that reads its body with control characters in strings allowed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_leniently(request: Request) -> Response:
            return await handle(LenientRequest(request.scope, request.receive))

        return handle_leniently
