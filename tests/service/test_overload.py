"""More clients than the queue holds, clients that leave, slow clients."""

import asyncio
import json
import re
import select
import socket
import time
from contextlib import ExitStack

import httpx2
import requests

from tests.service.conftest import QUEUE, Service
from tests.service.load import EDIT
from tests.waiting import until

NUM_CLIENTS = 200
# Long enough to run while all clients connect.
LONG = {**EDIT, "width": 512, "height": 512, "num_inference_steps": 100, "views": "orbit:8"}


def purge(service: Service, ids: list[str]) -> None:
    for job_id in ids:
        requests.post(f"{service.url}/cancel/{job_id}", headers=service.headers, timeout=30)


def test_of_200_clients_nine_are_accepted_and_the_others_refused_before_any_of_these_ends(narrow: Service) -> None:
    """So no refusal waits for a free place. A second wave has the same outcome as the first."""
    assert narrow.run(**EDIT)["status"] == "COMPLETED"
    wave(narrow)
    wave(narrow)


def state(service: Service, job_id: str) -> str:
    response = requests.get(f"{service.url}/status/{job_id}", headers=service.headers, timeout=30)
    return str(response.json()["status"])


def wave(service: Service) -> None:
    """200 clients within two seconds."""

    async def send_all() -> list[tuple[float, httpx2.Response]]:
        limits = httpx2.Limits(max_connections=NUM_CLIENTS)
        async with httpx2.AsyncClient(limits=limits, timeout=60, trust_env=False, headers=service.headers) as client:

            async def send(number: int) -> tuple[float, httpx2.Response]:
                await asyncio.sleep(number * 0.01)
                began = time.monotonic()
                response = await client.post(f"{service.url}/run", json={"input": {**LONG, "seed": number}})
                return time.monotonic() - began, response

            return await asyncio.gather(*(send(number) for number in range(NUM_CLIENTS)))

    answers = asyncio.run(send_all())
    accepted = [response.json()["id"] for _, response in answers if response.status_code == 200]
    refused = [(elapsed_s, response) for elapsed_s, response in answers if response.status_code == 429]
    states = [state(service, each) for each in accepted]
    purge(service, accepted)
    assert sorted(states) == ["IN_PROGRESS"] + ["IN_QUEUE"] * QUEUE
    assert len(accepted) == 1 + QUEUE
    assert len(refused) == NUM_CLIENTS - len(accepted)
    assert all(int(response.headers["retry-after"]) > 0 for _, response in refused)
    elapsed = sorted(elapsed_s for elapsed_s, _ in refused)
    print(
        f"{len(accepted)} accepted, {len(refused)} refused: median {1000 * elapsed[len(elapsed) // 2]:.0f} ms, "
        f"slowest {1000 * elapsed[-1]:.0f} ms"
    )


def test_50_clients_who_leave_free_the_engine(narrow: Service) -> None:
    """Edits on OpenAI's route end with their connections: each leaves the engine, and none is finished."""
    body = {"prompt": "x", "size": "512x512", "num_inference_steps": 100, "image": EDIT["image"]}
    with ExitStack() as connections:
        for number in range(50):
            connections.enter_context(
                connected(narrow, "/v1/images/edits", json.dumps(body).encode(), request_id=f"leaver-{number}")
            )
        time.sleep(2)  # All of them have started by then; one alone takes several seconds.
    left = time.monotonic()
    short = {**body, "num_inference_steps": 1}
    response = requests.post(f"{narrow.url}/v1/images/edits", json=short, headers=narrow.headers, timeout=60)
    print(f"the next edit was answered {time.monotonic() - left:.2f} s after 50 clients had left")
    assert response.status_code == 200
    until(lambda: len(set(re.findall(r"edit (leaver-\d+) cancelled after", narrow.log))) == 50)
    assert not re.search(r"edit leaver-\d+ done", narrow.log)


def test_100_slow_clients_do_not_delay_others(narrow: Service) -> None:
    """Slow loris: connections that announce a body and send it byte by byte. All are still open and unanswered when the
    others have been answered, unless the machine took longer for those than an upload may pause."""
    with ExitStack() as connections:
        slow = [connections.enter_context(connected(narrow, "/run", b"{", announced=10_000)) for _ in range(100)]
        elapsed_s = []
        for round_number in range(10):
            for connection in slow[round_number::10]:
                connection.sendall(b" ")
            began = time.monotonic()
            assert requests.get(f"{narrow.url}/health", headers=narrow.headers, timeout=30).status_code == 200
            assert narrow.run(**EDIT)["status"] == "COMPLETED"
            elapsed_s.append(time.monotonic() - began)
        answered, _, _ = select.select(slow, [], [], 0)
        assert {connection.recv(12) for connection in answered} <= {b"HTTP/1.1 408"}
    print(f"beside 100 slow clients a request took at most {max(elapsed_s):.2f} s")


def connected(
    service: Service,
    path: str,
    body: bytes,
    announced: int | None = None,
    request_id: str = "any",
    method: str = "POST",
) -> socket.socket:
    """A connection that has sent a request, or its beginning."""
    host, port = service.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), 30)
    headers = {
        "Host": host,
        "Content-Type": "application/json",
        "Content-Length": announced or len(body),
        "X-Request-Id": request_id,
        **service.headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    return connection
