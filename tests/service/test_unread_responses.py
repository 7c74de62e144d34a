"""Clients that do not read their responses take a bounded amount of memory, and give it back."""

import socket
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import requests

from tests.service.conftest import Host, Service
from tests.service.load import PICTURE, processes

MIB = 2**20
NUM_CLIENTS = 60
MIN_ANSWER_BYTES = 6 * MIB
HELD_BYTES = 256 * MIB
"""What a process may hold more than before: the budget of one client, 32 MiB, as messages and as what they are made
of. 60 answers are more than that."""
LEFT_BYTES = 64 * MIB
WATCH_S, DEADLINE_S = 8, 60


def private_bytes(host: Host) -> dict[str, int]:
    """Memory of the proxy and the replicas, without Ray's object store, whose size is fixed."""
    found = {}
    for name, process in processes(host.process.pid).items():
        if "Proxy" in name or "Ingress" in name or "Jobs" in name:
            memory = process.memory_info()
            found[name] = memory.rss - memory.shared
    assert len(found) == 3, found
    return found


def growth(host: Host, before: dict[str, int]) -> dict[str, int]:
    return {name: num_bytes - before[name] for name, num_bytes in private_bytes(host).items()}


def requested(service: Service, path: str) -> socket.socket:
    """A connection with a request whose response nobody reads."""
    address = urlsplit(service.url)
    connection = socket.create_connection((address.hostname, address.port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: {address.netloc}\r\n\r\n".encode())
    return connection


def test_sixty_long_polls_that_nobody_reads_take_bounded_memory_and_give_it_back(open_host: Host) -> None:
    service = open_host.service
    picture = {"image": PICTURE, "prompt": "x", "width": 1024, "height": 1024, "num_inference_steps": 1}
    envelope = service.run(**picture, views=[{"azimuth": 45 * index} for index in range(2)])
    assert sum(map(len, envelope["output"]["images"])) >= MIN_ANSWER_BYTES
    before = private_bytes(open_host)
    with ExitStack() as connections:
        for _ in range(NUM_CLIENTS):
            connections.enter_context(requested(service, f"/status-sync/{envelope['id']}?wait=1000"))
        peak = dict.fromkeys(before, 0)
        watched_until = time.monotonic() + WATCH_S
        while time.monotonic() < watched_until:
            peak = {name: max(peak[name], num_bytes) for name, num_bytes in growth(open_host, before).items()}
            time.sleep(0.2)
    print({name: f"{num_bytes / MIB:+.0f} MiB" for name, num_bytes in peak.items()})
    assert max(peak.values()) <= HELD_BYTES, peak
    deadline = time.monotonic() + DEADLINE_S
    while max((left := growth(open_host, before)).values()) > LEFT_BYTES:
        assert time.monotonic() < deadline, left
        # Cyclic garbage is collected when there is new work.
        for _ in range(50):
            requests.get(f"{service.url}/health/live", timeout=10)
    print({name: f"{num_bytes / MIB:+.0f} MiB" for name, num_bytes in left.items()})
