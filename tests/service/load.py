"""Shared by the load scripts: the load of `camera-edit bench serve` with a record of its jobs, and the service's
processes."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import psutil
import requests

from serve_app.tools.load.dialects import Answer, Prepare, Send, prepare_runpod
from serve_app.tools.load.load import Make, Outcome
from serve_app.tools.load.mix import EditKind, Mix, edits_of
from tests.pictures import photograph, to_base64
from tests.service.conftest import Service

PICTURE = to_base64(photograph("astronaut", 64, 64))
EDIT: dict[str, Any] = {"image": PICTURE, "prompt": "x", "width": 64, "height": 64, "num_inference_steps": 1}
STREAMED = tuple(EditKind(size="64x64", num_inference_steps=steps, previews=1) for steps in range(2, 9))
"""A mix whose edits are submitted by /run and followed by /stream."""

TIMEOUT_S = 300.0
PAUSE_S = 0.25
"""After a request that failed."""

Loop = Callable[[Make], Awaitable[list[Outcome]]]
"""An open or closed loop, but for the requests."""


@dataclass(frozen=True)
class Submission:
    """The response to a request for a job. Times on the monotonic clock."""

    sent_at: float
    answered_at: float
    status: int
    has_retry_after: bool

    @property
    def kind(self) -> str:
        if self.status == 200:
            return "200"
        return f"{self.status} {'with' if self.has_retry_after else 'without'} Retry-After"


@dataclass
class Record:
    """What a service answered to requests for jobs.

    Attributes:
        accepted: the input of each job that /run accepted, by its id.
    """

    submissions: list[Submission] = field(default_factory=list)
    accepted: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def answers(self) -> Counter[str]:
        return Counter(each.kind for each in self.submissions)

    async def sending(self, request: httpx2.Request) -> None:
        request.extensions["sent_at"] = time.monotonic()

    async def answered(self, response: httpx2.Response) -> None:
        request = response.request
        if request.method != "POST":
            return
        body = await response.aread()
        sent_at: float = request.extensions["sent_at"]
        has_retry_after = "retry-after" in response.headers
        self.submissions.append(Submission(sent_at, time.monotonic(), response.status_code, has_retry_after))
        if response.status_code == 200 and request.url.path == "/run":
            self.accepted[json.loads(body)["id"]] = json.loads(request.content)["input"]


async def send_load(
    service: Service, loop: Loop, mix: Mix, record: Record, prepare: Prepare = prepare_runpod, seed: int = 0
) -> list[Outcome]:
    """Send edits until the loop ends. A client that is refused pauses."""
    hooks: dict[str, list[Callable[..., Any]]] = {"request": [record.sending], "response": [record.answered]}
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    edits = edits_of(mix, seed)
    async with httpx2.AsyncClient(
        base_url=service.url, timeout=TIMEOUT_S, limits=limits, event_hooks=hooks, trust_env=False
    ) as http:
        return await loop(lambda _: _with_pause(prepare(http, next(edits))))


def _with_pause(send: Send) -> Send:
    async def send_and_pause() -> Answer:
        answer = await send()
        if answer.error not in (None, "HTTP 400"):
            await asyncio.sleep(PAUSE_S)
        return answer

    return send_and_pause


def errors_of(outcomes: list[Outcome]) -> Counter[str]:
    """The numbers of failed requests by the kind of error."""
    return Counter(outcome.error for outcome in outcomes if outcome.error is not None)


def post(service: Service, path: str, body: dict[str, Any], timeout_s: float = 120) -> dict[str, Any]:
    """POST a body; returns the JSON of the response, or nothing if there is none."""
    try:
        response = requests.post(f"{service.url}{path}", json=body, timeout=timeout_s)
        envelope: dict[str, Any] = response.json()
    except (requests.RequestException, ValueError):
        return {}
    return envelope


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
