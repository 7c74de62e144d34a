"""The client against a service whose responses and clock the test sets."""

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx2
import pytest

from serve_app.errors import EditFailed, InvalidInput, ServiceError, ServiceUnavailable, Unauthorized
from serve_app.tools.connection import Connection
from serve_app.tools.edit.client import GONE_S, MAX_SUBMISSIONS, Answer, EditClient

ACCEPTED = httpx2.Response(200, json={"id": "job-1", "status": "IN_QUEUE"})
RUNNING = httpx2.Response(200, json={"id": "job-1", "status": "IN_PROGRESS"})
FAILED = httpx2.Response(200, json={"id": "job-1", "status": "FAILED", "error": "no memory"})
UNKNOWN = httpx2.Response(404, json={"error": "There is no job job-1."})
OUTPUT = {"images": [base64.b64encode(b"picture").decode()], "seed": 7, "final_prompts": ["x"], "rewritten_log": []}
DONE = httpx2.Response(200, json={"id": "job-1", "status": "COMPLETED", "output": OUTPUT})
BUSY = httpx2.Response(429, json={"error": "full"}, headers={"retry-after": "17"})
CUT, REFUSED = httpx2.RemoteProtocolError("the server disconnected"), httpx2.ConnectError("refused")
RUN, STATUS = "POST /run", "GET /status-sync/job-1"

Outcome = httpx2.Response | httpx2.HTTPError


@dataclass
class Service:
    """Returns these outcomes in turn, then the last one for ever; pauses pass at once on its clock."""

    outcomes: Sequence[Outcome]
    now_s: float = 0.0
    pauses: list[float] = field(default_factory=list)
    requests: list[httpx2.Request] = field(default_factory=list)

    def edit(self) -> Answer:
        async def run() -> Answer:
            connection = Connection("http://127.0.0.1:8000", "the-key")
            async with EditClient(connection, httpx2.MockTransport(self._respond), self._clock, self._sleep) as client:
                return await client.edit({"input": {}}, "a-hash")

        return asyncio.run(run())

    @property
    def calls(self) -> list[str]:
        return [f"{request.method} {request.url.path}" for request in self.requests]

    def _clock(self) -> float:
        return self.now_s

    async def _sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.pauses.append(seconds)

    def _respond(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        outcome = self.outcomes[min(len(self.requests), len(self.outcomes)) - 1]
        if isinstance(outcome, httpx2.HTTPError):
            raise outcome
        return httpx2.Response(outcome.status_code, content=outcome.content, headers=dict(outcome.headers))


def test_a_job_is_submitted_once_and_waited_for() -> None:
    service = Service([ACCEPTED, RUNNING, RUNNING, DONE])
    assert service.edit() == Answer("job-1", b"picture", 7, "x", None)
    assert service.calls == [RUN, STATUS, STATUS, STATUS]
    assert service.requests[0].headers["idempotency-key"] == "a-hash"
    assert {request.headers["authorization"] for request in service.requests} == {"Bearer the-key"}


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(status: int) -> None:
    busy = httpx2.Response(status, json={"error": "full"}, headers={"retry-after": "17"})
    service = Service([busy, busy, ACCEPTED, DONE])
    assert service.edit().data == b"picture"
    assert service.pauses == [17, 17]


def test_without_retry_after_pauses_grow_to_a_limit() -> None:
    service = Service([*[httpx2.Response(502)] * 7, ACCEPTED, DONE])
    service.edit()
    assert service.pauses == [0.5, 1, 2, 4, 8, 15, 15]


@pytest.mark.parametrize("problem", [CUT, REFUSED, httpx2.ReadTimeout("slow")], ids=repr)
def test_a_lost_connection_continues_with_the_same_job(problem: httpx2.HTTPError) -> None:
    service = Service([problem, ACCEPTED, problem, RUNNING, problem, DONE])
    assert service.edit().data == b"picture"
    assert service.calls == [RUN, RUN, STATUS, STATUS, STATUS, STATUS]
    assert {request.headers.get("idempotency-key") for request in service.requests[:2]} == {"a-hash"}


def test_a_job_that_the_service_forgot_is_submitted_again_a_few_times() -> None:
    service = Service([ACCEPTED, UNKNOWN, ACCEPTED, DONE])
    assert service.edit().data == b"picture"
    assert service.calls == [RUN, STATUS, RUN, STATUS]
    forgetful = Service([ACCEPTED, UNKNOWN] * 10)
    with pytest.raises(EditFailed, match="forgets"):
        forgetful.edit()
    assert forgetful.calls == [RUN, STATUS] * MAX_SUBMISSIONS


@pytest.mark.parametrize("outcome", [REFUSED, httpx2.Response(503, json={"error": "draining"})], ids=repr)
def test_a_service_that_is_gone_ends_the_command(outcome: Outcome) -> None:
    service = Service([ACCEPTED, RUNNING, outcome])
    with pytest.raises(ServiceUnavailable, match="has not been available for 300 s"):
        service.edit()
    assert service.now_s > GONE_S


def test_a_full_queue_does_not_count_as_gone() -> None:
    service = Service([*[BUSY] * 100, ACCEPTED, DONE])
    assert service.edit().data == b"picture"
    assert service.now_s > 2 * GONE_S


@pytest.mark.parametrize(
    ("response", "kind", "message"),
    [
        (httpx2.Response(400, json={"error": "input.seed is too large."}), InvalidInput, "input.seed is too large."),
        (httpx2.Response(500, json={"error": "broken"}), ServiceError, "500: broken"),
        (httpx2.Response(422, json={"error": "another request before"}), EditFailed, "another request before"),
        (httpx2.Response(401, json={"error": "no"}), Unauthorized, "CAMERA_EDIT_API_KEY"),
        (
            httpx2.Response(404, text="nginx"),
            ServiceUnavailable,
            "is not a camera-edit service: /run answers 404: nginx",
        ),
        (httpx2.Response(200, text="<html>"), ServiceUnavailable, "is not a camera-edit service: '<html>'"),
    ],
)
def test_a_rejection_says_why(response: httpx2.Response, kind: type[ServiceError], message: str) -> None:
    with pytest.raises(kind, match=message.replace("(", r"\(")) as caught:
        Service([response]).edit()
    assert type(caught.value) is kind
    assert "the-key" not in str(caught.value)


def test_a_job_without_a_picture_says_why() -> None:
    with pytest.raises(EditFailed, match="The job ended as FAILED: no memory"):
        Service([ACCEPTED, FAILED]).edit()
