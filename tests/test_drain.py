"""`camera-edit drain` against a service that answers as it is told."""

import httpx2
import pytest

from serve_app import drain as module
from serve_app.drain import drain
from serve_app.errors import DeadlineExceeded, ServiceError, ServiceUnavailable, Unauthorized

URL = "http://127.0.0.1:8000"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0)
    monkeypatch.setattr(module, "SETTLE_S", 0)
    monkeypatch.setenv("CAMERA_EDIT_API_KEYS", "first,second")
    monkeypatch.delenv("CAMERA_EDIT_API_KEYS_FILE", raising=False)


def answering(*answers: httpx2.Response) -> tuple[httpx2.MockTransport, list[httpx2.Request]]:
    """The answers in turn, the last one for ever; and the requests."""
    asked: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return answers[min(len(asked), len(answers)) - 1]

    return httpx2.MockTransport(answer), asked


def left(requests: int, jobs: int) -> httpx2.Response:
    return httpx2.Response(200, json={"requests": requests, "jobs": jobs})


def test_it_asks_until_nothing_is_in_flight() -> None:
    transport, asked = answering(left(2, 3), left(2, 3), left(0, 1), left(0, 0))
    said: list[str] = []
    drain(URL, 60, said.append, transport)
    assert said == ["waiting for 2 requests and 3 jobs", "waiting for 1 jobs"]
    assert [(request.method, request.url.path) for request in asked] == [("POST", "/drain")] * 4
    assert asked[0].headers["authorization"] == "Bearer first"


def test_it_gives_up_after_its_time() -> None:
    transport, _ = answering(left(1, 0))
    with pytest.raises(DeadlineExceeded, match="1 requests still in flight after 0 s"):
        drain(URL, 0, print, transport)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (httpx2.Response(401), Unauthorized, "set CAMERA_EDIT_API_KEYS"),
        (httpx2.Response(404, text="Path '/drain' not found."), ServiceError, "answers 404: Path '/drain' not found."),
    ],
)
def test_what_is_no_drain_is_told(answer: httpx2.Response, error: type[ServiceError], message: str) -> None:
    transport, _ = answering(answer)
    with pytest.raises(error, match=message):
        drain(URL, 60, print, transport)


def test_a_service_that_is_not_there_is_told() -> None:
    def refuse(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("connection refused")

    with pytest.raises(ServiceUnavailable, match=r"http://127\.0\.0\.1:8000.* does not answer: connection refused"):
        drain(URL, 60, print, httpx2.MockTransport(refuse))
