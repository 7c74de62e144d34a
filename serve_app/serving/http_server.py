"""The HTTP servers that Serve starts, in its proxies and, behind HAProxy, in the replicas of the ingress."""

import asyncio

import uvicorn.config
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

STALLED_S = 20.0
"""How long a client may take none of the bytes that were sent to it, or not all of them."""


def configure_http_servers() -> None:
    """Let the servers of this process disconnect clients that do not read, and treat a WebSocket's handshake as a plain
    request, which our middleware rejects. Called before the servers start, since Serve has no setting for either.

    uvicorn 0.54 neither answers nor closes a handshake whose method is not GET.
    """
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:ImpatientProtocol"
    uvicorn.config.WS_PROTOCOLS["auto"] = None


class ImpatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which aborts a connection whose client has not taken what was sent within `STALLED_S`.
    uvicorn itself waits without end, in `send` and after it has closed the connection."""

    _abortion: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Writing pauses as soon as the kernel's buffer is full, and resumes when all was taken from ours.
        transport.set_write_buffer_limits(high=0)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abortion = self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._abortion is not None:
            self._abortion.cancel()
            self._abortion = None


def is_behind_haproxy() -> bool:
    """Whether HAProxy stands in for Serve's own proxies."""
    return bool(RAY_SERVE_ENABLE_HA_PROXY)
