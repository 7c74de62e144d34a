"""One client that opens many connections, or sends large bodies, takes nothing from the others."""

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil
import requests

from tests.service.conftest import KEY_IN_FILE, Host, Service
from tests.service.load import EDIT, processes
from tests.service.test_overload import LONG, connected
from tests.waiting import until

MIB = 2**20


def require_service(service: Service) -> None:
    """Health, and an edit of a client with another key."""
    assert requests.get(f"{service.url}/health/live", timeout=10).status_code == 200
    other = {"authorization": f"Bearer {KEY_IN_FILE}"}
    response = requests.post(f"{service.url}/runsync", json={"input": EDIT}, headers=other, timeout=60)
    assert (response.status_code, response.json().get("status")) == (200, "COMPLETED")


def proxy_of(host: Host) -> psutil.Process:
    return next(each for name, each in processes(host.process.pid).items() if "Proxy" in name)


@contextmanager
def peak_rss(process: psutil.Process) -> Iterator[list[int]]:
    """The largest memory of a process meanwhile, in bytes, as the only element."""
    peak, ended = [process.memory_info().rss], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def answered(connections: list[socket.socket]) -> list[bytes]:
    """What has arrived on those that have an answer; of one that was reset meanwhile, nothing."""

    def received(connection: socket.socket) -> bytes:
        try:
            return connection.recv(2**16)
        except ConnectionResetError:
            return b""

    readable, _, _ = select.select(connections, [], [], 0)
    return [received(each) for each in readable]


def test_300_long_polls_of_one_key_leave_places_for_others(narrow: Service) -> None:
    job = requests.post(f"{narrow.url}/run", json={"input": LONG}, headers=narrow.headers, timeout=30).json()["id"]
    try:
        with ExitStack() as connections:
            path = f"/status-sync/{job}?wait=300000"
            polls = [connections.enter_context(connected(narrow, path, b"", method="GET")) for _ in range(300)]
            until(lambda: len(select.select(polls, [], [], 0)[0]) == 300 - 64)
            requests.get(f"{narrow.url}/health/live", timeout=10).raise_for_status()
            other = {"authorization": f"Bearer {KEY_IN_FILE}"}
            assert requests.get(f"{narrow.url}/status/{job}", headers=other, timeout=10).status_code == 200
            assert {each.split(b"\r\n")[0] for each in answered(polls)} == {b"HTTP/1.1 429 Too Many Requests"}
    finally:
        # The closed connections of this key occupy its places until the proxy has noticed.
        cancel = f"{narrow.url}/cancel/{job}"
        until(lambda: requests.post(cancel, headers=narrow.headers, timeout=30).status_code == 200)
    require_service(narrow)


def test_150_stalled_uploads_of_one_key_take_neither_places_nor_memory(narrow_host: Host) -> None:
    narrow, proxy = narrow_host.service, proxy_of(narrow_host)
    began = proxy.memory_info().rss
    body = b" " * 17 * MIB

    def send(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(body)

    with ExitStack() as connections, peak_rss(proxy) as peak:
        stalled = [connections.enter_context(connected(narrow, "/run", b"{", announced=18 * MIB)) for _ in range(150)]
        for each in stalled:
            threading.Thread(target=send, args=(each,), daemon=True).start()
        require_service(narrow)
        until(lambda: len(select.select(stalled, [], [], 0)[0]) == 150, 60)
        statuses = {each[9:12] for each in answered(stalled)}
    require_service(narrow)
    ended = proxy.memory_info().rss
    print(f"proxy: {began / MIB:.0f} MiB, at most {peak[0] / MIB:.0f}, then {ended / MIB:.0f}; statuses {statuses}")
    assert {b"408", b"429"} <= statuses <= {b"408", b"429", b""}
    # Half of `max_bodies_bytes` for this key, and as much again for the copies that go to the replica.
    assert peak[0] - began < 256 * MIB


def test_bodies_without_a_key_leave_the_memory_of_the_proxy_as_it_was(narrow_host: Host) -> None:
    narrow, proxy = narrow_host.service, proxy_of(narrow_host)

    def send(is_announced: bool) -> int:
        data = b" " * 100 * MIB
        body = data if is_announced else (data[:MIB] for _ in range(100))
        try:
            return requests.post(f"{narrow.url}/run", data=body, timeout=60).status_code
        except requests.ConnectionError:
            return 0  # Closed before it could be read, since the client was still sending.

    began = proxy.memory_info().rss
    with peak_rss(proxy) as peak:
        statuses = [send(is_announced) for is_announced in (True, False) for _ in range(3)]
        require_service(narrow)
    until(lambda: proxy.memory_info().rss - began < 64 * MIB)
    print(f"proxy: {began / MIB:.0f} MiB, at most {peak[0] / MIB:.0f} MiB; statuses {statuses}")
    assert set(statuses) <= {0, 401, 413}
    assert peak[0] - began < 64 * MIB


def test_a_client_that_does_not_read_is_disconnected(narrow_host: Host) -> None:
    """With its connection, the file and the answer that the proxy holds for it are gone."""
    narrow, proxy = narrow_host.service, proxy_of(narrow_host)
    job = narrow.run(**{**EDIT, "width": 1024, "height": 1024, "views": "orbit:4"})["id"]
    num_files = proxy.num_fds()
    with ExitStack() as connections:
        for _ in range(10):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
            connections.enter_context(connection)
            host, port = narrow.url.removeprefix("http://").split(":")
            connection.connect((host, int(port)))
            connection.sendall(
                f"GET /status/{job} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
                f"Authorization: Bearer {narrow.key}\r\n\r\n".encode()
            )
        until(lambda: proxy.num_fds() >= num_files + 10)
        until(lambda: proxy.num_fds() < num_files + 5, 60)
