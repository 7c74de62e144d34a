"""A port in front of a server that closes and opens, as if the server stopped and returned."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread

from tests.processes import free_port


@dataclass
class Forwarder:
    """Forwards connections to another port of this machine. A closed one breaks them and refuses new ones."""

    target: int
    port: int = field(default_factory=free_port)
    _listener: socket.socket = field(init=False)
    _accepting: Thread = field(init=False)
    _sockets: list[socket.socket] = field(default_factory=list)

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._accepting = Thread(target=self._accept)
        self._accepting.start()

    def close(self) -> None:
        _close(self._listener)
        self._accepting.join()
        while self._sockets:
            _close(self._sockets.pop())

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                self._sockets += [client, server]
                Thread(target=_copy, args=(client, server), daemon=True).start()
                Thread(target=_copy, args=(server, client), daemon=True).start()


@contextmanager
def forwarding(target: int) -> Iterator[Forwarder]:
    """An open forwarder, until the end of the block."""
    forwarder = Forwarder(target)
    forwarder.open()
    try:
        yield forwarder
    finally:
        forwarder.close()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):  # either end is closed
        while part := source.recv(65536):
            sink.sendall(part)
    _close(source)
    _close(sink)


def _close(sock: socket.socket) -> None:
    with suppress(OSError):  # it is not connected any more
        sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads or accepts
    sock.close()
