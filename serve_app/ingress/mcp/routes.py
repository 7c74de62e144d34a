"""MCP's route, over the official SDK. Any replica can answer any request: none keeps a session."""

import asyncio
import logging
import uuid
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http import MCP_SESSION_ID_HEADER, REQUEST_CANCELLED
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
)
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from serve_app import __version__
from serve_app.errors import EditCancelled, ServiceError
from serve_app.ingress.auth import CLIENT
from serve_app.ingress.backend import Backend
from serve_app.ingress.cross_origin import check_origin
from serve_app.ingress.mcp.answers import error_result
from serve_app.ingress.mcp.calls import CallId
from serve_app.ingress.mcp.message import McpMessage, read_message
from serve_app.ingress.mcp.tools import ARGUMENTS, call_tool, list_tools
from serve_app.ingress.parsing.bodies import LateResponse
from serve_app.ingress.parsing.validation import echo, unexpected

_INSTRUCTIONS = (
    "Edits pictures and moves the camera around what is in them. Pictures go in as base64, data URLs or, where the "
    "server allows it, https URLs. Each result has the seed, with which the same call makes the same picture."
)

# At INFO, the SDK reports the begin and end of each request.
logging.getLogger("mcp").setLevel(logging.WARNING)


def mcp_router(backend: Backend) -> APIRouter:
    """`POST /mcp`, or nothing where the setting `mcp` is off. MCP describes its tools itself, so /docs does not."""
    router = APIRouter(include_in_schema=False)
    if not backend.settings.mcp:
        return router
    server = _server(backend)

    @router.post("/mcp")
    async def mcp(request: Request) -> Response:
        """One JSON-RPC message of a client."""
        check_origin(request.headers, backend.settings.cors_origins)
        most = backend.settings.limits.max_body_bytes
        try:
            # FastAPI keeps its own request object, and that would keep the body.
            message = await backend.bodies.read(Request(request.scope, request.receive), read_message, most)
        except ClientDisconnect as problem:
            raise EditCancelled("The connection closed before the body was complete.") from problem
        if message.method == "notifications/cancelled":
            await _cancel(backend, _call_id(request, message))
        return LateResponse(partial(_answer, server, most, message))

    return router


def _call_id(request: Request, message: McpMessage) -> CallId | None:
    session = request.headers.get(MCP_SESSION_ID_HEADER)
    if session is None or message.request_id is None:
        return None
    return CallId(CLIENT.get(), session, message.request_id)


async def _cancel(backend: Backend, call: CallId | None) -> None:
    if call is not None and not backend.calls.cancel(call) and backend.cancel_elsewhere is not None:
        await backend.cancel_elsewhere(call)


async def _answer(server: "Server[Any]", max_body_bytes: int, message: McpMessage) -> Response:
    return McpResponse(server, max_body_bytes, message)


class McpResponse(Response):
    """Lets the SDK answer one message. Everything that it starts ends with the response, or when the client leaves.

    The answer is one JSON object unless the client wants progress: Python's client takes no event above 1 MiB.
    """

    def __init__(self, server: "Server[Any]", max_body_bytes: int, message: McpMessage) -> None:
        super().__init__()
        self._message = message
        self._manager = StreamableHTTPSessionManager(
            server, stateless=True, json_response=not message.wants_progress, max_request_body_size=max_body_bytes
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = asyncio.create_task(self._serve(scope, send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            answering.cancel()
            leaving.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _serve(self, scope: Scope, send: Send) -> None:
        body = self._message.body
        # What arrived may have been compressed, and the SDK gets a shorter one.
        kept = [each for each in scope["headers"] if each[0] not in (b"content-length", b"content-encoding")]
        state = {**scope.get("state", {}), "mcp_message": self._message}
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if not messages:
                await asyncio.Event().wait()  # `__call__` watches the connection
            return messages.pop()

        async with self._manager.run():
            await self._manager.handle_request({**scope, "headers": kept, "state": state}, receive, self._named(send))

    def _named(self, send: Send) -> Send:
        """Adds a session id to the answer of `initialize`, which later requests then carry."""
        if self._message.method != "initialize":
            return send

        async def send_with_session(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[MCP_SESSION_ID_HEADER] = uuid.uuid4().hex
            await send(message)

        return send_with_session


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _server(backend: Backend) -> "Server[Any]":
    async def on_list_tools(
        context: ServerRequestContext[Any, Any], params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return ListToolsResult(tools=list_tools())

    return Server(
        "qwen-camera-edit",
        version=__version__,
        instructions=_INSTRUCTIONS,
        on_list_tools=on_list_tools,
        on_call_tool=partial(_call, backend),
    )


async def _call(
    backend: Backend, context: ServerRequestContext[Any, Any], params: CallToolRequestParams
) -> CallToolResult:
    """
    Raises:
        MCPError: there is no such tool, or the call was cancelled.
    """
    if params.name not in ARGUMENTS:
        raise MCPError(INVALID_PARAMS, f"There is no tool {echo(params.name)}; tools/list has: {', '.join(ARGUMENTS)}.")
    request: Any = context.request
    message: McpMessage = request.state.mcp_message
    with backend.calls.cancellable(_call_id(request, message)):
        return await _result(backend, params.name, message.arguments or {}, request.state.request_id, context)
    raise MCPError(REQUEST_CANCELLED, "Request cancelled")


async def _result(
    backend: Backend, name: str, arguments: dict[str, Any], request_id: str, context: ServerRequestContext[Any, Any]
) -> CallToolResult:
    try:
        return await call_tool(backend, name, arguments, request_id, context.session.report_progress)
    except ServiceError as problem:
        return error_result(problem, backend.retry_after_s() if problem.status == 429 else None)
    except Exception as problem:
        return error_result(unexpected(problem, f"the tool {name}"), None)
