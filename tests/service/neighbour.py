"""A well-behaved client, which sends an edit per second and polls /health/live, whatever others do meanwhile."""

import asyncio
import base64
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx2

from tests.service.conftest import Service
from tests.service.load import EDIT

EDIT_EVERY_S = 1.0
POLL_EVERY_S = 0.25
TIMEOUT_S = 30.0

RUNPOD = {"input": EDIT}
OPENAI = {
    "image": f"data:image/png;base64,{EDIT['image']}",
    "prompt": EDIT["prompt"],
    "size": "64x64",
    "num_inference_steps": 1,
}


@dataclass(frozen=True)
class Outcome:
    """Of one request.

    Attributes:
        answer: `200`, another status, the state and error of a job that is not COMPLETED, or why there is no answer.
    """

    answer: str
    elapsed_s: float


@dataclass(frozen=True)
class Record:
    """What a well-behaved client saw."""

    edits: list[Outcome]
    polls: list[Outcome]

    @property
    def answers(self) -> Counter[str]:
        return Counter(edit.answer for edit in self.edits)

    @property
    def poll_answers(self) -> Counter[str]:
        return Counter(poll.answer for poll in self.polls)

    def edit_s(self, share: float) -> float:
        """The time within which this share of the edits was answered, in seconds."""
        times = sorted(edit.elapsed_s for edit in self.edits)
        return times[min(len(times) - 1, int(share * len(times)))]

    @property
    def slowest_poll_s(self) -> float:
        return max(poll.elapsed_s for poll in self.polls)


async def behave(service: Service, seconds: float) -> Record:
    """Send requests at fixed times, each on a connection of its own, without waiting for earlier ones to be answered:
    RunPod's and OpenAI's dialect by turns."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(
        base_url=service.url, headers=service.headers, limits=limits, timeout=TIMEOUT_S, trust_env=False
    ) as client:

        async def edit(number: int) -> str:
            if number % 2:
                response = await client.post("/v1/images/edits", json=OPENAI)
                if response.status_code == 200:
                    base64.b64decode(response.json()["data"][0]["b64_json"], validate=True)
                return str(response.status_code)
            response = await client.post("/runsync", json=RUNPOD)
            job = response.json() if response.status_code == 200 else {}
            is_completed = job.get("status", "COMPLETED") == "COMPLETED"
            return str(response.status_code) if is_completed else f"{job['status']} ({job.get('error')})"

        async def poll(_: int) -> str:
            return str((await client.get("/health/live")).status_code)

        edits, polls = await asyncio.gather(
            _at_fixed_times(edit, EDIT_EVERY_S, seconds), _at_fixed_times(poll, POLL_EVERY_S, seconds)
        )
    return Record(edits, polls)


async def _at_fixed_times(request: Callable[[int], Awaitable[str]], every_s: float, seconds: float) -> list[Outcome]:
    async def timed(number: int) -> Outcome:
        began = time.monotonic()
        try:
            answer = await request(number)
        except httpx2.HTTPError as problem:
            answer = type(problem).__name__
        return Outcome(answer, time.monotonic() - began)

    began, tasks = time.monotonic(), []
    for number in range(round(seconds / every_s)):
        await asyncio.sleep(began + number * every_s - time.monotonic())
        tasks.append(asyncio.create_task(timed(number)))
    return await asyncio.gather(*tasks)
