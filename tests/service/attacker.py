"""A hostile client: connections of its own, raw requests, and bounded repetition. `attacks.py` has the kinds."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")


@dataclass(frozen=True)
class Target:
    """The service that is attacked.

    Attributes:
        key: the API key of the hostile client.
        stalling: an origin that the service may fetch from and notify; under `/never` it does not answer.
    """

    url: str
    key: str
    stalling: str


@dataclass(frozen=True)
class Answer:
    """`status` is 0 if the connection was closed without an answer."""

    status: int
    body: bytes

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


class Attack:
    """One kind of hostile client: calls `attempt` on `num_connections` connections at once, again and again, and no
    more than `per_s` times a second.

    Attributes:
        keyless: it sends no API key.
    """

    num_connections: ClassVar[int] = 4
    per_s: ClassVar[float] = 20.0
    keyless: ClassVar[bool] = False

    def __init__(self, target: Target) -> None:
        self.target = target
        self._job_ids: list[str] = []

    async def prepare(self) -> None:
        """What precedes the attack and is not measured."""

    async def attempt(self, number: int) -> int | str:
        """One attempt, and what came of it: a status or a word."""
        raise NotImplementedError

    async def run(self, seconds: float) -> Counter[str]:
        """Attack for a time; returns how often each outcome came. `waiting`: connections that were open at the end."""
        outcomes: Counter[str] = Counter()
        workers = [asyncio.create_task(self._work(number, outcomes)) for number in range(self.num_connections)]
        await asyncio.wait(workers, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for worker in workers:
            worker.cancel()
        for outcome in await asyncio.gather(*workers, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        return outcomes

    async def clean_up(self) -> None:
        """Cancel the jobs that are left."""
        places = asyncio.Semaphore(8)

        async def cancel(job_id: str) -> None:
            async with places:
                await self.ask("POST", f"/cancel/{job_id}")

        await asyncio.gather(*map(cancel, self._job_ids))

    async def _work(self, number: int, outcomes: Counter[str]) -> None:
        pause_s = self.num_connections / self.per_s
        await asyncio.sleep(number / self.per_s)
        while True:
            try:
                outcome = str(await self.attempt(number))
            except asyncio.CancelledError:
                outcomes["waiting"] += 1
                raise
            except (OSError, asyncio.IncompleteReadError):
                outcome = "broken"
            outcomes[outcome] += 1
            number += self.num_connections
            await asyncio.sleep(pause_s)

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | AsyncIterator[bytes] = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """A request on a connection of its own, with this body or the pieces of one, and its answer."""
        reader, writer = await self.connect()
        sending = asyncio.create_task(_send(writer, self.head(method, path, body, headers), body))
        try:
            status_line = await reader.readline()
            answer = await reader.read()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            writer.transport.abort()
        head, _, content = answer.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            content = b"".join(content.split(b"\r\n")[1::2])
        return Answer(int(status_line.split()[1]) if status_line else 0, content)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = urlsplit(self.target.url)
        return await asyncio.open_connection(address.hostname, address.port)

    def head(
        self,
        method: str,
        path: str,
        body: bytes | AsyncIterator[bytes] = b"",
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        fields = {
            "host": urlsplit(self.target.url).netloc,
            "connection": "close",
            "content-type": "application/json",
            **({} if self.keyless else {"authorization": f"Bearer {self.target.key}"}),
            **({"content-length": str(len(body))} if isinstance(body, bytes) else {}),
            **(headers or {}),
        }
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        return "\r\n".join(lines).encode()

    async def post(self, path: str, value: Any, headers: Mapping[str, str] | None = None) -> Answer:
        return await self.ask("POST", path, json.dumps(value).encode(), headers)

    async def submit(self, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
        """The answer to a new job, which is cancelled after the attack."""
        answer = await self.post("/run", body, headers)
        if answer.status == 200:
            self._job_ids.append(str(answer.json()["id"]))
        return answer

    async def started(self, fields: Mapping[str, Any]) -> str:
        """The id of a new job; waits while the queue is full."""
        while (answer := await self.submit({"input": fields})).status != 200:
            await asyncio.sleep(0.5)
        return str(answer.json()["id"])

    async def ended(self, fields: Mapping[str, Any]) -> str:
        """The id of a job that has ended."""
        job_id = await self.started(fields)
        while (await self.ask("GET", f"/status-sync/{job_id}?wait=60000")).json().get("status") not in ENDED:
            await asyncio.sleep(0.5)
        return job_id


async def _send(writer: asyncio.StreamWriter, head: bytes, body: bytes | AsyncIterator[bytes]) -> None:
    writer.write(head)
    if isinstance(body, bytes):
        writer.write(body)
    else:
        async for piece in body:
            writer.write(piece)
            await writer.drain()
    await writer.drain()
