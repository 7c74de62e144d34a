"""Shared by the load scripts: a tiny edit, client threads, and the service's processes."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil
import requests

from tests.pictures import photograph, to_base64
from tests.service.conftest import Service

PICTURE = to_base64(photograph("astronaut", 64, 64))
EDIT: dict[str, Any] = {"image": PICTURE, "prompt": "x", "width": 64, "height": 64, "num_inference_steps": 1}


@dataclass(frozen=True)
class Result:
    """The result of one request: HTTP status (0: no response), seconds, job status and Retry-After, if present."""

    http_status: int
    elapsed_s: float
    job_status: str | None = None
    retry_after: str | None = None


def post(service: Service, path: str, body: dict[str, Any], timeout_s: float = 120) -> tuple[Result, dict[str, Any]]:
    """POST a body; returns the result and the JSON of the response. A broken connection has a result, too."""
    began = time.monotonic()
    try:
        response = requests.post(f"{service.url}{path}", json=body, timeout=timeout_s)
    except requests.RequestException:
        return Result(0, time.monotonic() - began), {}
    elapsed_s = time.monotonic() - began
    try:
        envelope: dict[str, Any] = response.json()
    except ValueError:
        envelope = {}
    result = Result(response.status_code, elapsed_s, envelope.get("status"), response.headers.get("retry-after"))
    return result, envelope


def run_clients(num_clients: int, goes_on: Callable[[int], bool], work: Callable[[int], None]) -> None:
    """Call `work` with 0, 1, 2, … on `num_clients` threads, as long as `goes_on` returns True for the number."""
    lock, numbers = threading.Lock(), iter(range(10**9))

    def client(_: int) -> None:
        while True:
            with lock:
                number = next(numbers)
            if not goes_on(number):
                return
            work(number)

    with ThreadPoolExecutor(num_clients) as clients:
        list(clients.map(client, range(num_clients)))


def processes(root_pid: int) -> dict[str, psutil.Process]:
    """The Python processes of a running service by name: replicas, proxy, controller."""
    found = {}
    for process in psutil.Process(root_pid).children(recursive=True):
        try:
            title = (process.cmdline() or [""])[0]
        except psutil.Error:
            continue
        if title.startswith("ray::") and "IDLE" not in title:
            found[f"{title.removeprefix('ray::').split('.')[0]} {process.pid}"] = process
    return found
