"""The application's own check of control headers: a Serve file may omit `serve_app.ingress.proxy`, and HAProxy does not
run it."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import InvalidInput
from serve_app.ingress.error_responses import refusal
from serve_app.ingress.proxy import STAYING_HEADER


class RejectControlHeaders:
    """ASGI middleware: rejects a request that would go on running without its client. One that sets its own time limit
    affects no other request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and Headers(scope=scope).get(STAYING_HEADER) == "?1":
            problem = InvalidInput(f"The header {STAYING_HEADER} is not a client's to set; leave it out.")
            await refusal(scope["path"], problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)
