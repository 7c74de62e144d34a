"""What happens to every request: an id."""

import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.serving.replica import is_sane


class RequestId:
    """ASGI middleware: `x-request-id` on every answer. A sane one that came with the request is kept. Routes find it
    in `request.state.request_id`.

    Args:
        proxy_answers: a proxy in front gives each request an id and puts it on the answer; a second one would make two.
    """

    def __init__(self, app: ASGIApp, *, proxy_answers: bool = False) -> None:
        self._app = app
        self._proxy_answers = proxy_answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        is_kept = is_sane(given)
        request_id = given if is_kept else f"req-{uuid.uuid4()}"
        told = {} if is_kept and self._proxy_answers else {"x-request-id": request_id}
        scope.setdefault("state", {}).update(request_id=request_id, answer_headers=told)

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(told)
            await send(message)

        await self._app(scope, receive, with_id)
