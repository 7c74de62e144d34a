"""Each request is counted once, under its route and never under text that a client chose."""

import asyncio
from dataclasses import dataclass, field

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from serve_app.config import AppSettings
from serve_app.ingress.metrics import MetricsMiddleware, RequestMetrics
from tests.ingress.openai_harness import DATA_URL, EDITS, harness


@dataclass
class Counted(RequestMetrics):
    ends: list[tuple[str, str, int]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def ended(self, dialect: str, route: str, key: str, status: int, seconds: float) -> None:
        self.ends.append((dialect, route, status))
        self.keys.append(key)
        self.seconds.append(seconds)


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def client(counted: Counted) -> TestClient:
    app = FastAPI()
    app.add_middleware(MetricsMiddleware, metrics=counted)

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
    assert counted.keys == [""]
    assert counted.seconds[0] > 0


def test_a_client_that_left_is_counted_as_gone(counted: Counted) -> None:
    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async def nothing() -> Message:
        return {"type": "http.disconnect"}

    async def nowhere(message: Message) -> None: ...

    async def leave() -> None:
        scope = {"type": "http", "path": "/run"}
        request = asyncio.create_task(MetricsMiddleware(endless, counted)(scope, nothing, nowhere))
        await asyncio.sleep(0)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)

    asyncio.run(leave())
    assert counted.ends == [("runpod", "none", 499)]


@pytest.mark.parametrize(
    ("method", "path", "dialect"),
    [
        ("GET", "/health/live", "service"),
        ("GET", "/health/ready", "service"),
        ("POST", "/drain", "service"),
        ("POST", "/undrain", "service"),
        ("GET", "/docs", "service"),
        ("GET", "/redoc", "service"),
        ("GET", "/openapi.json", "service"),
        ("GET", "/health", "runpod"),
        ("GET", "/v2/any/health", "runpod"),
        ("POST", "/purge-queue", "runpod"),
        ("GET", "/v1/models", "openai"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/edit"])
def test_what_belongs_to_no_dialect_is_counted_as_the_services(
    tiny_settings: AppSettings, counted: Counted, method: str, path: str, dialect: str, prefix: str
) -> None:
    app = harness(tiny_settings).app
    app.add_middleware(MetricsMiddleware, metrics=counted)
    TestClient(app, root_path=prefix).request(method, prefix + path)
    assert [end[0] for end in counted.ends] == [dialect]


@pytest.mark.parametrize(
    ("key", "name"), [("acme:k-1", "acme"), ("k-2", ""), ("no name:k-3", "")], ids=["named", "bare", "no-name"]
)
def test_a_request_is_counted_under_the_name_of_its_key_and_never_under_the_key(
    tiny_settings: AppSettings, counted: Counted, key: str, name: str
) -> None:
    app = harness(tiny_settings, api_keys=("acme:k-1", "k-2", "no name:k-3"))
    app.app.add_middleware(MetricsMiddleware, metrics=counted)
    sent = key.removeprefix("acme:")
    fields = {"prompt": "x", "image": DATA_URL}
    assert app.client.post(EDITS, json=fields, headers={"authorization": f"Bearer {sent}"}).status_code == 200
    assert app.client.post(EDITS, json=fields, headers={"authorization": "Bearer wrong"}).status_code == 401
    assert counted.keys == [name, ""]


def test_rays_metrics_have_the_key_as_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[dict[str, str]] = []
    monkeypatch.setattr("ray.util.metrics.Counter.inc", lambda self, value, tags: labels.append(tags))
    monkeypatch.setattr("ray.util.metrics.Histogram.observe", lambda self, value, tags: labels.append(tags))
    RequestMetrics().ended("runpod", "/run", "acme", 200, 0.5)
    assert labels == [
        {"dialect": "runpod", "route": "/run", "key": "acme", "status": "200"},
        {"dialect": "runpod", "route": "/run", "key": "acme"},
    ]
