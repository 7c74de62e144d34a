"""A queue that was full a moment ago: who is refused in the proxy, and who is let through."""

from dataclasses import dataclass, field

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from serve_app.ingress import proxy_gate
from serve_app.ingress.proxy_gate import FULL_S, FullGate

RUN, EDITS = "/v2/mine/run", "/v1/images/edits"


@dataclass
class Counted:
    """In place of Ray's metrics."""

    ended_with: list[tuple[str, int]] = field(default_factory=list)

    def ended(self, dialect: str, route: str, status: int, seconds: float) -> None:
        self.ended_with.append((dialect, status))


@dataclass
class Behind:
    """An application that answers with the next of these statuses, and a clock."""

    counted: Counted
    now: float = 100.0
    statuses: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        async def answer(request: Request) -> JSONResponse:
            self.asked.append(request.url.path)
            return JSONResponse({"from": "app"}, self.statuses.pop(0), {"retry-after": "42"})

        app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
        self.client = TestClient(FullGate(app, clock=lambda: self.now))


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> Behind:
    counted = Counted()
    monkeypatch.setattr(proxy_gate, "RequestMetrics", lambda: counted)
    return Behind(counted)


def test_after_a_429_the_next_ones_are_told_the_same_without_the_application(behind: Behind) -> None:
    behind.statuses = [429, 200]
    assert behind.client.post(RUN).json() == {"from": "app"}
    refused = behind.client.post("/runsync", headers={"x-request-id": "mine"})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "42")
    assert refused.headers["x-request-id"] == "mine"
    assert "try again later" in refused.json()["error"]
    assert behind.client.post(RUN).headers["x-request-id"].startswith("req-")
    assert behind.asked == [RUN]
    assert behind.counted.ended_with == [("runpod", 429)] * 2
    behind.now += FULL_S
    assert behind.client.post(RUN).status_code == 200


@pytest.mark.parametrize("status", [200, 401, 422, 503])
def test_no_other_answer_closes_it(behind: Behind, status: int) -> None:
    behind.statuses = [status, 200]
    behind.client.post(RUN)
    assert behind.client.post(RUN).status_code == 200


def test_each_dialect_has_its_own_queue(behind: Behind) -> None:
    behind.statuses = [429, 200, 200, 429]
    behind.client.post(RUN)
    assert behind.client.post(EDITS).status_code == 200
    behind.now += FULL_S
    assert behind.client.post(RUN).status_code == 200
    behind.client.post(EDITS)
    refused = behind.client.post(EDITS)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
    assert behind.counted.ended_with == [("openai", 429)]


def test_what_is_no_new_work_passes(behind: Behind) -> None:
    behind.statuses = [429, 200, 200, 200]
    behind.client.post(RUN)
    assert behind.client.get("/v2/mine/status/1").status_code == 200
    assert behind.client.post("/v2/mine/cancel/1").status_code == 200
    assert behind.client.post(RUN, headers={"Idempotency-Key": "k"}).status_code == 200
