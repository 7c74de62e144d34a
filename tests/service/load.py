"""What the load scripts share: a tiny edit, clients on threads, and a look at the service's processes."""

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
class Answered:
    """One request's end: HTTP status (0: no answer), seconds, the status of its job and Retry-After, if told."""

    http_status: int
    elapsed_s: float
    job_status: str | None = None
    retry_after: str | None = None


def post(service: Service, path: str, body: dict[str, Any], timeout_s: float = 120) -> tuple[Answered, dict[str, Any]]:
    """POST and look at what came; a connection that broke is an answer, too."""
    began = time.monotonic()
    try:
        response = requests.post(f"{service.url}{path}", json=body, timeout=timeout_s)
    except requests.RequestException:
        return Answered(0, time.monotonic() - began), {}
    elapsed_s = time.monotonic() - began
    try:
        told: dict[str, Any] = response.json()
    except ValueError:
        told = {}
    answered = Answered(response.status_code, elapsed_s, told.get("status"), response.headers.get("retry-after"))
    return answered, told


def by_clients(num_clients: int, until: Callable[[int], bool], work: Callable[[int], None]) -> None:
    """Number after number, from 0 on, given to clients side by side, as long as `until` lets them."""
    lock, numbers = threading.Lock(), iter(range(10**9))

    def client(_: int) -> None:
        while True:
            with lock:
                number = next(numbers)
            if not until(number):
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
