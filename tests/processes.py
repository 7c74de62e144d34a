"""Free ports, and a Redis server that tests start and stop."""

import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_PORTS = range(20_000, 32_000)
"""Below the ports of outgoing connections, above those of Ray's workers."""

_locks: list[int] = []


def free_port() -> int:
    """A port on which nothing listens, reserved until this process ends: no other call returns it, in any test process
    on this machine.

    Raises:
        OSError: none is left.
    """
    folder = Path(tempfile.gettempdir()) / f"camera-edit-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for port in random.sample(_PORTS, len(_PORTS)):
        lock = os.open(folder / str(port), os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            os.close(lock)
            continue
        _locks.append(lock)
        return port
    raise OSError(f"no port is left of {_PORTS}")


@contextmanager
def starting() -> Iterator[None]:
    """Held while a test starts a Ray cluster. Only one test process on this machine does so at a time: Ray ends a node
    that is not up after 30 s, which two starts at once on two busy cores may exceed."""
    with (Path(tempfile.gettempdir()) / f"camera-edit-start-{os.getuid()}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass
class RedisServer:
    """A Redis server on its own port that can be stopped and started again.

    Attributes:
        folder: where it stores its data; None: in memory only.
    """

    folder: Path | None = None
    port: int = field(default_factory=free_port)
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        binary = shutil.which("redis-server")
        assert binary is not None, "redis-server is not installed: apt-get install redis-server"
        durable = ["--appendonly", "no"]
        if self.folder is not None:
            durable = ["--appendonly", "yes", "--appendfsync", "always", "--dir", str(self.folder)]
        self._process = subprocess.Popen(
            [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *durable],
            stdout=subprocess.DEVNULL,
        )
        _wait_until_listening(self.port)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def pause(self) -> None:
        """Suspend the process: connections stay open and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def redis_server() -> Iterator[str]:
    """Start a Redis server that keeps its data in memory; yields its URL."""
    server = RedisServer()
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


def _wait_until_listening(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "redis-server does not listen"
            time.sleep(0.05)
