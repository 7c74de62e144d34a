"""More clients than the queue holds, clients that leave, slow clients."""

import asyncio
import json
import re
import select
import socket
import time
import uuid
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest
import requests

from tests.service.conftest import KEY_IN_FILE, QUEUE, Service
from tests.service.load import EDIT
from tests.waiting import until, until_async

NUM_CLIENTS = 200
# Long enough to run while all clients connect.
LONG = {**EDIT, "width": 512, "height": 512, "num_inference_steps": 100, "views": "orbit:8"}


OPENAI_LONG = {
    "image": EDIT["image"],
    "prompt": "x",
    "size": "512x512",
    "num_inference_steps": 100,
    "views": "orbit:8",
}


@pytest.mark.parametrize(
    ("path", "body", "has_keys"),
    [("/run", {"input": LONG}, False), ("/run", {"input": LONG}, True), ("/v1/images/edits", OPENAI_LONG, True)],
    ids=["runpod", "runpod-new-idempotency-keys", "openai-new-idempotency-keys"],
)
def test_of_200_clients_nine_are_accepted_and_the_others_refused_before_any_of_these_ends(
    narrow: Service, path: str, body: dict[str, Any], has_keys: bool
) -> None:
    """So no refusal waits for a free place. A second wave has the same outcome as the first."""
    assert narrow.run(**EDIT)["status"] == "COMPLETED"
    wave(narrow, path, body, has_keys)
    wave(narrow, path, body, has_keys)


def wave(service: Service, path: str, body: dict[str, Any], has_keys: bool) -> None:
    """200 clients within two seconds. Those of OpenAI wait for the end of their jobs, if these are accepted."""
    log_began = len(service.log)

    async def send_all() -> tuple[list[tuple[float, httpx2.Response]], dict[str, int]]:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(
            base_url=service.url, limits=limits, timeout=60, trust_env=False, headers=service.headers
        ) as client:

            async def send(number: int) -> tuple[float, httpx2.Response]:
                await asyncio.sleep(number * 0.01)
                began = time.monotonic()
                headers = {"idempotency-key": uuid.uuid4().hex} if has_keys else {}
                response = await client.post(path, json=body, headers=headers)
                return time.monotonic() - began, response

            clients = [asyncio.create_task(send(number)) for number in range(NUM_CLIENTS)]
            num_answered = NUM_CLIENTS - (1 + QUEUE if path == "/v1/images/edits" else 0)
            await until_async(lambda: sum(client.done() for client in clients) >= num_answered, timeout_s=60)
            answers = [client.result() for client in clients if client.done()]
            # On a busy machine the first job's edits take seconds to begin.
            deadline = time.monotonic() + 60
            while (jobs := (await client.get("/health")).json()["jobs"])["inProgress"] == 0:
                assert time.monotonic() < deadline, jobs
                await asyncio.sleep(0.1)
            await asyncio.to_thread(cancel_jobs, service, log_began)
            for client_task in clients:
                client_task.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            return answers, jobs

    answers, jobs = asyncio.run(send_all())
    refused = [(elapsed_s, response) for elapsed_s, response in answers if response.status_code == 429]
    assert (jobs["inProgress"], jobs["inQueue"]) == (1, QUEUE)
    assert len(refused) == NUM_CLIENTS - 1 - QUEUE
    assert {response.status_code for _, response in answers} <= {200, 429}
    assert all(int(response.headers["retry-after"]) > 0 for _, response in refused)
    elapsed = sorted(elapsed_s for elapsed_s, _ in refused)
    print(
        f"{len(refused)} of {NUM_CLIENTS} refused: median {1000 * elapsed[len(elapsed) // 2]:.0f} ms, "
        f"99 % within {1000 * elapsed[int(0.99 * len(elapsed))]:.0f} ms, slowest {1000 * elapsed[-1]:.0f} ms"
    )


def cancel_jobs(service: Service, log_began: int) -> None:
    """Cancel all jobs that the log has named since a position in it. The log comes with a delay."""

    def none_is_left() -> bool:
        for job_id in set(re.findall(r"job (\S+) taken", service.log[log_began:])):
            requests.post(f"{service.url}/cancel/{job_id}", headers=service.headers, timeout=30)
        jobs = requests.get(f"{service.url}/health", headers=service.headers, timeout=30).json()["jobs"]
        return bool(jobs["inProgress"] + jobs["inQueue"] == 0)

    until(none_is_left, pause_s=0.5)


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
        clients = (narrow, narrow.with_key(KEY_IN_FILE)) * 50  # fewer of each key than it may have open at once
        slow = [connections.enter_context(connected(each, "/run", b"{", announced=10_000)) for each in clients]
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
