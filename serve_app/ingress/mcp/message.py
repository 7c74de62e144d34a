"""One JSON-RPC message, read within the limits of all bodies. A tool's arguments are taken out of it, since they hold
pictures: the SDK, which reads the rest on the event loop, never sees them."""

import json
from dataclasses import dataclass
from typing import Any

from serve_app.ingress.parsing.bodies import read_json


@dataclass(frozen=True)
class McpMessage:
    """A message without its arguments.

    Attributes:
        body: for the SDK, which checks its shape.
        method: None: it is not a request or notification.
        request_id: of a request; of a `notifications/cancelled`, the one that it names.
        wants_progress: it has a progress token.
        arguments: of `tools/call`.
    """

    body: bytes
    method: str | None = None
    request_id: str | int | None = None
    wants_progress: bool = False
    arguments: dict[str, Any] | None = None


def read_message(body: bytes) -> McpMessage:
    """Read a body.

    Raises:
        InvalidInput: it is not valid JSON, or beyond a limit.
    """
    message = read_json(body)
    if not isinstance(message, dict) or not isinstance(message.get("method"), str):
        return McpMessage(_dumped(message))
    method, params = message["method"], message.get("params")
    if not isinstance(params, dict):
        return McpMessage(_dumped(message), method)
    request_id = params.get("requestId") if method == "notifications/cancelled" else message.get("id")
    meta, arguments = params.get("_meta"), params.get("arguments")
    if method == "tools/call" and isinstance(arguments, dict):
        message = {**message, "params": {**params, "arguments": {}}}
    return McpMessage(
        _dumped(message),
        method,
        request_id if isinstance(request_id, str | int) else None,
        isinstance(meta, dict) and meta.get("progressToken") is not None,
        arguments if isinstance(arguments, dict) else None,
    )


def _dumped(message: object) -> bytes:
    return json.dumps(message).encode()
