"""Each request is counted once, by what it was and not by what it said."""

import asyncio
from dataclasses import dataclass, field

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from serve_app.ingress.metrics import Measured, RequestMetrics


@dataclass
class Counted(RequestMetrics):
    ends: list[tuple[str, str, int]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def ended(self, dialect: str, route: str, status: int, seconds: float) -> None:
        self.ends.append((dialect, route, status))
        self.seconds.append(seconds)


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def client(counted: Counted) -> TestClient:
    app = FastAPI()
    app.add_middleware(Measured, metrics=counted)

    @app.get("/status/{job_id}")
    async def status(job_id: str) -> str:
        return job_id

    @app.get("/v1/models")
    async def models() -> str:
        raise RuntimeError("broken")

    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("path", "end"),
    [
        ("/status/my-secret?key=my-secret", ("runpod", "/status/{job_id}", 200)),
        ("/v1/models", ("openai", "/v1/models", 500)),
        ("/my-secret", ("runpod", "none", 404)),
        ("/v1/my-secret", ("openai", "none", 404)),
    ],
)
def test_a_request_is_counted(client: TestClient, counted: Counted, path: str, end: tuple[str, str, int]) -> None:
    assert client.get(path).status_code == end[2]
    assert counted.ends == [end]
    assert counted.seconds[0] > 0


def test_a_client_that_left_is_counted_as_gone(counted: Counted) -> None:
    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async def nothing() -> Message:
        return {"type": "http.disconnect"}

    async def nowhere(message: Message) -> None: ...

    async def leave() -> None:
        scope = {"type": "http", "path": "/run"}
        request = asyncio.create_task(Measured(endless, counted)(scope, nothing, nowhere))
        await asyncio.sleep(0)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)

    asyncio.run(leave())
    assert counted.ends == [("runpod", "none", 499)]
