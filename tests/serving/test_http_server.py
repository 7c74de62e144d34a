"""Clients that do not read what uvicorn sends them."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.ingress.limits.transfer import TransferLimits
from serve_app.serving import http_server

ANSWER = b"x" * 16 * 2**20
"""More than the kernel's buffers take."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the processes of the service; put back afterwards."""
    for protocols in (uvicorn.config.HTTP_PROTOCOLS, uvicorn.config.WS_PROTOCOLS):
        monkeypatch.setitem(protocols, "auto", protocols["auto"])
    http_server.configure_http_servers()


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": ANSWER})


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[tuple[uvicorn.Server, socket.socket]]:
    """A server, and a connection that has sent it a request."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        try:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, listener.getsockname())
            await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            yield server, client
        finally:
            server.should_exit = True
            await task


async def received(client: socket.socket) -> int:
    """How many bytes arrive until the server closes the connection."""
    num_bytes, loop = 0, asyncio.get_running_loop()
    try:
        while chunk := await loop.sock_recv(client, 2**18):
            num_bytes += len(chunk)
            await asyncio.sleep(0.03)
    except ConnectionResetError:
        pass
    return num_bytes


@pytest.mark.parametrize("app", [answer, TransferLimits(answer)], ids=["at once", "in chunks"])
def test_a_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch, app: ASGIApp) -> None:
    monkeypatch.setattr(http_server, "STALLED_S", 0.2)

    async def main() -> None:
        async with asyncio.timeout(30), serving(app) as (server, client):
            while not server.server_state.connections:
                await asyncio.sleep(0.01)
            while server.server_state.connections or server.server_state.tasks:
                await asyncio.sleep(0.01)
            assert await received(client) < len(ANSWER)

    asyncio.run(main())


def test_a_client_that_reads_slowly_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes each chunk in time, and all of them in a longer time."""
    monkeypatch.setattr(http_server, "STALLED_S", 2)

    async def main() -> None:
        async with asyncio.timeout(60), serving(TransferLimits(answer)) as (_, client):
            assert await received(client) > len(ANSWER)

    asyncio.run(main())


def test_pauses_between_the_parts_of_a_response_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "STALLED_S", 0.1)

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
            await asyncio.sleep(0.3)
        await send({"type": "http.response.body", "body": b"end"})

    async def main() -> None:
        async with asyncio.timeout(30), serving(TransferLimits(stream)) as (_, client):
            answered, loop = b"", asyncio.get_running_loop()
            while chunk := await loop.sock_recv(client, 2**16):
                answered += chunk
            assert answered.count(b"part") == 3
            assert answered.endswith(b"3\r\nend\r\n0\r\n\r\n")

    asyncio.run(main())
