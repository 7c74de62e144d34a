"""`camera-edit drain` against a service whose responses and clock the test sets."""

from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from serve_app.cli import main
from serve_app.errors import ConfigError, DeadlineExceeded, Forbidden, ServiceError, ServiceUnavailable, Unauthorized
from serve_app.ingress.auth import API_KEYS, OPERATOR_KEYS
from serve_app.tools import drain as module
from serve_app.tools.drain import drain, undrain

URL = "http://127.0.0.1:8000"
UNAVAILABLE = httpx2.Response(503, json={"error": "Not every Ingress answers right now; try again."})
REFUSED = httpx2.ConnectError("connection refused")
CUT = httpx2.RemoteProtocolError("the server disconnected")
SLOW = httpx2.ReadTimeout("timed out")
FOREVER_S = 1e9

Outcome = httpx2.Response | httpx2.HTTPError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0)
    monkeypatch.setattr(module, "SETTLE_S", 0)
    for source in (API_KEYS, OPERATOR_KEYS):
        monkeypatch.delenv(source.variable, raising=False)
        monkeypatch.delenv(source.file_variable, raising=False)


class Service:
    """Returns these outcomes in turn, then the last one for ever; each takes `takes_s` seconds of its clock."""

    def __init__(self, *outcomes: Outcome, takes_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.requests: list[httpx2.Request] = []
        self.printed: list[str] = []
        self._outcomes = outcomes
        self._takes_s = takes_s

    def drain(self, timeout_s: float = FOREVER_S, keys_file: str | None = None) -> None:
        drain(URL, timeout_s, self.printed.append, httpx2.MockTransport(self._answer), keys_file, self.clock)

    def undrain(self) -> None:
        undrain(URL, httpx2.MockTransport(self._answer), self.clock)

    def clock(self) -> float:
        return self.now_s

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        self.now_s += self._takes_s
        outcome = self._outcomes[min(len(self.requests), len(self._outcomes)) - 1]
        if isinstance(outcome, httpx2.HTTPError):
            raise outcome
        return outcome


def left(requests: int, jobs: int) -> httpx2.Response:
    return httpx2.Response(200, json={"requests": requests, "jobs": jobs})


def test_it_polls_until_nothing_is_in_flight() -> None:
    service = Service(left(2, 3), left(2, 3), left(0, 1), left(0, 0))
    service.drain()
    assert service.printed == ["waiting for 2 requests and 3 jobs", "waiting for 1 jobs"]
    assert [(request.method, request.url.path) for request in service.requests] == [("POST", "/drain")] * 4
    assert "authorization" not in service.requests[0].headers


def test_it_sends_the_first_operator_key_and_never_an_api_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sent(keys_file: str | None = None) -> str | None:
        service = Service(left(0, 0))
        service.drain(keys_file=keys_file)
        header: str | None = service.requests[0].headers.get("authorization")
        return header

    monkeypatch.setenv("CAMERA_EDIT_API_KEYS", "customer")
    assert sent() is None
    file = tmp_path / "keys"
    file.write_text("# ours\nme:from-file\nanother\n")
    assert sent(str(file)) == "Bearer from-file"
    monkeypatch.setenv("CAMERA_EDIT_OPERATOR_KEYS", "first,second")
    assert sent(str(file)) == "Bearer first"
    monkeypatch.delenv("CAMERA_EDIT_OPERATOR_KEYS")
    monkeypatch.setenv("CAMERA_EDIT_OPERATOR_KEYS_FILE", str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="The file of operator keys"):
        sent(str(file))


def test_it_gives_up_after_its_time() -> None:
    with pytest.raises(DeadlineExceeded, match="1 requests still in flight after 100 s"):
        Service(left(1, 0), takes_s=30).drain(100)


@pytest.mark.parametrize(
    "hiccup", [UNAVAILABLE, httpx2.Response(502), httpx2.Response(429), REFUSED, CUT, SLOW], ids=str
)
def test_a_failed_request_does_not_end_the_drain(hiccup: Outcome) -> None:
    service = Service(left(3, 2), hiccup, left(1, 0), hiccup, left(0, 0))
    service.drain()
    assert len(service.requests) == 5
    assert service.printed[0] == "waiting for 3 requests and 2 jobs"
    assert service.printed[1].startswith("no answer, trying again: ")
    assert service.printed[2] == "waiting for 1 requests"


@pytest.mark.parametrize("hiccup", [UNAVAILABLE, CUT, SLOW], ids=str)
def test_failures_after_the_first_answer_last_until_the_deadline(hiccup: Outcome) -> None:
    service = Service(left(3, 2), hiccup, takes_s=100)
    with pytest.raises(DeadlineExceeded, match="unknown work still in flight after 1800 s"):
        service.drain(1800)
    assert len(service.requests) == 19


def test_refused_connections_for_a_minute_mean_that_the_service_is_gone() -> None:
    service = Service(left(3, 2), REFUSED, takes_s=20)
    with pytest.raises(ServiceUnavailable, match="does not answer: connection refused"):
        service.drain()
    assert len(service.requests) == 5  # refused at 40, 60, 80 and 100 s


@pytest.mark.parametrize("between", [left(3, 2), UNAVAILABLE, SLOW, CUT], ids=str)
def test_refused_connections_count_in_a_row_only(between: Outcome) -> None:
    service = Service(left(3, 2), *[REFUSED, REFUSED, REFUSED, between] * 5, left(0, 0), takes_s=20)
    service.drain()
    assert len(service.requests) == 22


@pytest.mark.parametrize("failure", [UNAVAILABLE, REFUSED, CUT, SLOW], ids=str)
def test_before_the_first_answer_it_waits_for_ten_seconds(failure: Outcome) -> None:
    service = Service(failure, failure, left(0, 0), takes_s=4)
    service.drain()
    assert len(service.requests) == 3
    with pytest.raises(ServiceUnavailable, match=r"http://127\.0\.0\.1:8000.* does not answer: "):
        Service(failure, takes_s=4).drain()


def test_a_service_that_is_not_there_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_ANSWER_S", 0)
    service = Service(REFUSED)
    with pytest.raises(ServiceUnavailable, match=r"http://127\.0\.0\.1:8000.* does not answer: connection refused"):
        service.drain()
    assert len(service.requests) == 1


@pytest.mark.parametrize("call", [Service.drain, Service.undrain])
@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (httpx2.Response(401), Unauthorized, "set CAMERA_EDIT_OPERATOR_KEYS"),
        (httpx2.Response(403, text="not local"), Forbidden, "answers 403: not local"),
        (httpx2.Response(404, text="Path not found."), ServiceError, "drain answers 404: Path not found."),
        (httpx2.Response(200, text="<html>"), ServiceError, "is not a camera-edit service: <html>"),
        (httpx2.Response(200, json=[1]), ServiceError, "is not a camera-edit service"),
        (httpx2.Response(200, json={"requests": "many"}), ServiceError, "is not a camera-edit service"),
    ],
)
def test_an_answer_that_will_not_change_ends_it_at_once(
    call: Callable[[Service], None], answer: httpx2.Response, error: type[ServiceError], message: str
) -> None:
    service = Service(answer)
    with pytest.raises(error, match=message):
        call(service)
    assert len(service.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_such_an_answer_ends_a_drain_that_has_begun(status: int) -> None:
    service = Service(left(1, 0), httpx2.Response(status))
    with pytest.raises(ServiceError):
        service.drain()
    assert len(service.requests) == 2


def test_an_undrain_returns_at_the_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMERA_EDIT_OPERATOR_KEYS", "op")
    service = Service(UNAVAILABLE, CUT, left(3, 2))
    service.undrain()
    assert [(request.method, request.url.path) for request in service.requests] == [("POST", "/undrain")] * 3
    assert {request.headers["authorization"] for request in service.requests} == {"Bearer op"}


def test_the_command_drains_and_undoes_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    called: list[tuple[object, ...]] = []
    monkeypatch.setattr(module, "drain", lambda url, timeout_s, print_line: called.append(("drain", url, timeout_s)))
    monkeypatch.setattr(module, "undrain", lambda url: called.append(("undrain", url)))
    assert main(["drain", URL, "--timeout", "5"]) == 0
    assert main(["drain", URL, "--undo"]) == 0
    assert called == [("drain", URL, 5.0), ("undrain", URL)]
    assert capsys.readouterr().out.splitlines() == [
        "drained: nothing is in flight and no new work is taken",
        "the drain is undone: new work is taken",
    ]


def test_a_text_that_is_no_url_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drain", "foo"]) == 2
    assert "'foo' is not the URL of a service, such as http://127.0.0.1:8000." in capsys.readouterr().err


def test_a_drain_that_never_reached_the_service_does_not_claim_one() -> None:
    with pytest.raises(ServiceUnavailable, match="did not answer within 3 s: no answer, trying again: timed out"):
        Service(SLOW, takes_s=2.0).drain(3)
