"""The HTTP servers that Serve starts, in its proxies and, behind HAProxy, in the replicas of the ingress."""

import asyncio

import h11
import uvicorn.config
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY
from uvicorn.protocols.http.h11_impl import H11Protocol

STALLED_S = 20.0
"""A connection is aborted when its client has not taken all that was sent within this time."""

MAX_HEAD_BYTES = 2 * 2**20
"""Of a request's line and headers. Above it, uvicorn answers 400 in plain text. The middleware's limits are much lower,
and it answers in JSON."""


def configure_http_servers() -> None:
    """Let the servers of this process speak `HttpProtocol`. Called before the servers start, since Serve has no setting
    for it.

    A WebSocket's handshake is then a request like any other, which our middleware rejects: uvicorn 0.54 neither answers
    nor closes one whose method is not GET.
    """
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{HttpProtocol.__name__}"
    uvicorn.config.WS_PROTOCOLS["auto"] = None


class HttpProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 by h11, with two changes.

    An offer of another protocol (`Upgrade: h2c`) is ignored, as a server may. uvicorn's default, httptools, stops
    reading at such an offer and so loses the body of `curl --http2` and of Java's HttpClient. h11 takes 0.3 ms more of
    CPU time for a request, and none for a large body.

    A connection is aborted whose client has not taken what was sent within `STALLED_S`. uvicorn itself waits without
    end, in `send` and after it has closed the connection.
    """

    _abortion: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.conn = h11.Connection(h11.SERVER, MAX_HEAD_BYTES)
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

    def _unsupported_upgrade_warning(self) -> None:
        """uvicorn's would fill the log of a service with such clients."""


def is_behind_haproxy() -> bool:
    """Whether HAProxy stands in for Serve's own proxies."""
    return bool(RAY_SERVE_ENABLE_HA_PROXY)
