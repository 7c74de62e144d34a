"""A network under the test's control: name resolution, connections to public addresses, and misbehaving hosts."""

import asyncio.selector_events
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

import pytest

PUBLIC = [
    "1.1.1.1",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.169.0.0",
    "198.17.255.255",
    "223.255.255.255",
    "2001:200::1",
    "2001:db7::1",
    "2003::1",
    "2606:4700:4700::1111",
    "3ffe:ffff::1",
]
FORBIDDEN = [
    "0.0.0.0",
    "0.255.255.255",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",
    "100::1",
    "2001::1",
    "2001:0:7f00:1::",
    "2001:2::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%lo",
    "2606:4700:4700::1111%lo",
    "fec0::1",
    "ff02::1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
]

Script = Callable[[socket.socket, Event], None]
"""Runs on a connection after its request has been read; the event is set at the end of the test."""


@dataclass
class Network:
    """Fakes name resolution and connections to public addresses; connections to loopback are real.

    Attributes:
        answers: the addresses that each name resolves to, one list per lookup; the last list repeats.
        reachable: public IPv4 addresses that are redirected to this machine's loopback address.
        resolved: the names that were looked up.
        dialled: the addresses to which a connection was attempted.
    """

    answers: dict[str, list[list[str]]] = field(default_factory=dict)
    reachable: set[str] = field(default_factory=set)
    resolved: list[str] = field(default_factory=list)
    dialled: list[str] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        resolve = socket.getaddrinfo
        loop = asyncio.selector_events.BaseSelectorEventLoop
        connect = loop.sock_connect

        def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> Any:
            self.resolved.append(host)
            if host not in self.answers:
                # Numeric addresses in any notation, parsed by the system; AI_NUMERICHOST makes no DNS query.
                return resolve(host, *args, **{**kwargs, "flags": socket.AI_NUMERICHOST})
            answers = self.answers[host]
            found = answers.pop(0) if len(answers) > 1 else answers[0]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in found]

        async def sock_connect(self_: Any, sock: socket.socket, address: tuple[Any, ...]) -> None:
            self.dialled.append(address[0])
            if address[0] in self.reachable:
                return await connect(self_, sock, ("127.0.0.1", address[1]))
            if address[0] not in ("127.0.0.1", "::1"):
                raise ConnectionRefusedError
            return await connect(self_, sock, address)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(loop, "sock_connect", sock_connect)


@dataclass
class Host:
    """A server that listens on loopback.

    Attributes:
        requests: the bytes that each connection sent, one item per connection.
    """

    port: int
    requests: list[bytes] = field(default_factory=list)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def hosting(script: Script, wrap: Callable[[socket.socket], socket.socket] = lambda sock: sock) -> Iterator[Host]:
    """Start a host that runs the script on each connection, one after another."""
    closing = Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = Host(server.getsockname()[1])

        def serve() -> None:
            while not closing.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                _handle(connection)

        def _handle(connection: socket.socket) -> None:
            connection.settimeout(5)
            try:
                with wrap(connection) as stream:
                    host.requests.append(_whole_request(stream))
                    script(stream, closing)
            except OSError:  # the client has closed the connection, as expected
                connection.close()

        server.settimeout(0.02)
        thread = Thread(target=serve)
        thread.start()
        try:
            yield host
        finally:
            closing.set()
            thread.join()


def _whole_request(connection: socket.socket) -> bytes:
    """Read head and body, which may arrive in separate packets."""
    request = connection.recv(65536)
    while not _is_whole(request) and (more := connection.recv(65536)):
        request += more
    return request


def _is_whole(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


def sends(answer: bytes) -> Script:
    """Send an answer and close the connection."""
    return lambda connection, _: connection.sendall(answer)


def stalls(answer: bytes = b"") -> Script:
    """Send the start of an answer, then nothing, and keep the connection open."""

    def script(connection: socket.socket, closing: Event) -> None:
        connection.sendall(answer)
        closing.wait()

    return script


def repeats(answer: bytes, part: bytes, gap_s: float = 0.0) -> Script:
    """Send the start of an answer, then the same part for ever."""

    def script(connection: socket.socket, closing: Event) -> None:
        connection.sendall(answer)
        while not closing.wait(gap_s):
            connection.sendall(part)

    return script
