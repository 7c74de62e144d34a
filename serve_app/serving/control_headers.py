"""The headers by which a client would control Serve."""

import os
import re

TIMEOUT_HEADER = "x-request-timeout-seconds"
"""Sets the time after which Serve 2.60 aborts a request."""

DISCONNECT_HEADER = "x-request-disconnect-disabled"
"""With the value `?1`, Serve 2.60 runs a request to its end although its client has disconnected."""

MODEL_HEADER = "serve-multiplexed-model-id"
"""Serve 2.60 keeps each value of it in its proxy's memory for good."""

REQUEST_ID_HEADER = "x-request-id"
CONTROL_PREFIX = "x-serve-router-"
CONTROL_HEADERS = frozenset(
    {
        MODEL_HEADER,
        TIMEOUT_HEADER,
        DISCONNECT_HEADER,
        "x-body-truncated",
        "x-haproxy-reload-id",
        "traceparent",
        "tracestate",
    }
)
"""What Serve 2.60 itself reads of a request (`proxy.py`, `replica.py`, `http_util.py`, `proxy_request_response.py`,
`constants.py` and `haproxy_templates.py` in `ray/serve/_private`), in lower case with hyphens; besides these the header
that `SESSION_VARIABLE` names, those that begin with `CONTROL_PREFIX`, and `REQUEST_ID_HEADER`."""

SESSION_VARIABLE = "RAY_SERVE_SESSION_ID_HEADER_KEY"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def is_sane(request_id: str) -> bool:
    """Whether a caller's request id is kept and logged: up to 128 letters, digits, dots, hyphens and underscores."""
    return _REQUEST_ID.fullmatch(request_id) is not None


def session_header() -> str:
    """The header that Serve reads as a session's id, in lower case with hyphens."""
    return spelling(os.environ.get(SESSION_VARIABLE) or "x-session-id")


def spelling(name: str) -> str:
    """A header's name in lower case with hyphens."""
    # Serve reads the headers of models and sessions in any case, with hyphens or underscores.
    return name.lower().replace("_", "-")


def is_control_header(name: bytes, value: bytes, session: str) -> bool:
    """Whether Serve itself reads this header, or fails to decode its name, which is not ASCII. Not so a valid
    `x-request-id`.

    Args:
        session: `session_header()`.
    """
    if not name.isascii():
        return True
    spelled = spelling(name.decode("ascii"))
    if spelled == REQUEST_ID_HEADER:
        return name.lower() != spelled.encode() or not is_sane(value.decode("latin-1"))
    return spelled in CONTROL_HEADERS or spelled == session or spelled.startswith(CONTROL_PREFIX)
