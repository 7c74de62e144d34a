"""Health, readiness, the drain and its end, without Ray."""

import asyncio
import dataclasses
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient

from serve_app.config import AppSettings
from serve_app.edits.job import JobCounts, JobsPort
from serve_app.errors import ServiceUnavailable
from serve_app.ingress import health as module
from serve_app.ingress.app import build_app
from serve_app.ingress.backend import Draining
from serve_app.ingress.dialects import DIALECTS, dialect_of, is_work
from serve_app.ingress.health import CHECK_EVERY_S, Readiness
from tests.ingress.openai_harness import DATA_URL, EDITS, Call, Harness, error_of, harness, local
from tests.waiting import until_async


@pytest.fixture
def app(tiny_settings: AppSettings) -> Harness:
    return harness(tiny_settings)


def test_it_is_live_and_ready(app: Harness) -> None:
    assert app.client.get("/health/live").json() == {"status": "live"}
    response = app.client.get("/health/ready")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_probes_may_ask_for_the_head_only(app: Harness, path: str) -> None:
    response = app.client.head(path)
    assert (response.status_code, response.text) == (200, "")


def test_it_is_not_ready_without_an_editor_and_says_why(app: Harness) -> None:
    async def fault() -> str | None:
        return "no Editor is up; 1 starting"

    client = TestClient(build_app(dataclasses.replace(app.backend, editor_fault=fault)))
    response = client.get("/health/ready")
    assert response.status_code == 503
    assert response.json() == {"status": "not ready", "reason": "editor"}
    assert client.get("/health/live").status_code == 200


def test_readiness_needs_no_key_and_says_no_more_than_a_word(tiny_settings: AppSettings) -> None:
    app = harness(tiny_settings, api_keys=("secret",))
    assert app.client.get("/health/ready").json() == {"status": "ready"}
    app.backend.draining.begin()
    response = app.client.get("/health/ready")
    assert (response.status_code, response.json()) == (503, {"status": "not ready", "reason": "draining"})


def test_a_drained_service_takes_no_work_in_either_dialect_and_answers_the_rest(app: Harness) -> None:
    operator = local(app.app)
    assert operator.post("/drain").json() == {"requests": 0, "jobs": 0}
    assert app.client.get("/health/ready").json() == {"status": "not ready", "reason": "draining"}
    refused = app.json(prompt="x", url=DATA_URL)
    assert "takes no new work" in error_of(refused, 503)["message"]
    assert int(refused.headers["retry-after"]) > 0
    for path in ("/run", "/v2/any/runsync", "/retry/some-id"):
        response = app.client.post(path, json={"input": {"image": DATA_URL, "prompt": "x"}})
        assert response.status_code == 503
        assert response.json().keys() == {"error"}
        assert int(response.headers["retry-after"]) > 0
    assert app.client.get("/v1/models").status_code == 200
    assert operator.post("/purge-queue").status_code == 200
    assert app.client.get("/health/live").status_code == 200
    assert app.editor.requests == []


def test_a_webhook_that_is_being_notified_is_in_flight(app: Harness) -> None:
    async def counts() -> JobCounts:
        return JobCounts(completed=9, in_queue=1, in_progress=2, notifying=4)

    vars(app.jobs)["counts"] = counts
    assert local(app.app).post("/drain").json() == {"requests": 0, "jobs": 7}


def test_an_undrained_service_takes_work_again(app: Harness) -> None:
    operator = local(app.app)
    operator.post("/drain")
    assert app.json(prompt="x", url=DATA_URL).status_code == 503
    assert operator.post("/undrain").json() == {"requests": 0, "jobs": 0}
    assert app.json(prompt="x", url=DATA_URL).status_code == 200
    assert app.client.get("/health/ready").json() == {"status": "ready"}


def test_a_drain_ends_in_all_replicas(app: Harness) -> None:
    async def undrain() -> int:
        return 4

    backend = dataclasses.replace(app.backend, undrain=undrain)
    assert local(build_app(backend)).post("/undrain").json() == {"requests": 4, "jobs": 0}


@pytest.mark.parametrize("path", ["/run", "/v2/any/runsync", "/v1/images/edits", "/v2/any/openai/v1/images/edits"])
def test_a_drained_service_lets_repeatable_work_through_to_its_route(app: Harness, path: str) -> None:
    app.backend.draining.begin()
    assert app.client.post(path, json={}).status_code == 503
    assert app.client.post(path, json={}, headers={"Idempotency-Key": "k"}).status_code in (400, 422)


@pytest.mark.parametrize("path", ["/retry/some-id", "/v2/any/retry/some-id"])
def test_a_retry_is_new_work_whatever_it_carries(app: Harness, path: str) -> None:
    app.backend.draining.begin()
    assert app.client.post(path, headers={"Idempotency-Key": "k"}).status_code == 503


@pytest.mark.parametrize("path", ["/run%0A", "/retry/some-id%0A", "/v1/images/edits%0A"])
def test_a_newline_at_the_end_of_the_path_does_not_pass_the_drain(app: Harness, path: str) -> None:
    assert app.client.post(path, json={}).status_code in (400, 404, 422)
    app.backend.draining.begin()
    assert app.client.post(path, json={}).status_code == 503


def test_a_service_with_a_route_prefix_is_drained_like_any_other(app: Harness) -> None:
    client = TestClient(app.app, root_path="/edit")
    app.backend.draining.begin()
    assert client.post("/edit/run", json={}).status_code == 503
    assert client.get("/edit/health/ready").status_code == 503


def test_what_runs_is_counted_and_finished(app: Harness) -> None:
    async def scenario() -> None:
        app.editor.gate = asyncio.Semaphore(0)
        running = Call(app.app, {"prompt": "x", "url": DATA_URL}, content_type="application/json")
        await until_async(lambda: bool(app.editor.requests))
        assert app.backend.draining.begin() == 1
        late = Call(app.app, {"prompt": "x", "url": DATA_URL}, content_type="application/json")
        await late.task
        assert late.status == 503
        app.editor.gate.release()
        await running.task
        assert running.status == 200
        assert app.backend.draining.num_requests == 0

    asyncio.run(scenario())


def test_a_client_who_leaves_is_no_longer_in_flight(app: Harness) -> None:
    async def scenario() -> None:
        app.editor.gate = asyncio.Semaphore(0)
        call = Call(app.app, {"prompt": "x", "url": DATA_URL}, content_type="application/json")
        await until_async(lambda: app.backend.draining.num_requests == 1)
        call.task.cancel()
        await asyncio.gather(call.task, return_exceptions=True)
        assert app.backend.draining.num_requests == 0

    asyncio.run(scenario())


def test_a_drain_tells_of_all_replicas_or_fails(app: Harness) -> None:
    answers: list[int | Exception] = [3, ServiceUnavailable("Not every Ingress answers right now; try again.")]

    async def drain() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    backend = dataclasses.replace(app.backend, drain=drain, draining=Draining())
    client = local(build_app(backend))
    assert client.post("/drain").json() == {"requests": 3, "jobs": 0}
    assert client.post("/drain").status_code == 503


def test_every_route_that_asks_for_edits_is_work(app: Harness) -> None:
    posted = {str(each.path) for each in iter_route_contexts(app.app.routes) if "POST" in (each.methods or ())}
    work = {path for path in posted if is_work("POST", path)}
    ends = ("/status/{job_id}", "/cancel/{job_id}", "/purge-queue", "/drain", "/undrain")
    assert {path for path in posted if not path.endswith(ends)} == work
    assert {"/run", "/v2/{endpoint_id}/runsync", EDITS, "/v2/{endpoint_id}/retry/{job_id}"} <= work
    assert not is_work("GET", EDITS)


def test_every_path_has_one_dialect_and_its_work_is_its_own(app: Harness) -> None:
    paths = [str(each.path) for each in iter_route_contexts(app.app.routes)]
    for dialect in DIALECTS:
        assert any(dialect_of(path) is dialect for path in paths)
        assert all(dialect_of(path) is dialect for path in paths if dialect.work.match(path))
        assert dialect.error_body(400, "code", "message", None).model_dump(exclude_none=True)


@dataclass
class Behind:
    """An editor, the jobs, and a clock.

    Attributes:
        editor: why no editor would take work; or an error of the check.
        jobs: what `fault` returns; or an error; or an event that never comes.
    """

    editor: str | Exception | None = None
    jobs: str | Exception | asyncio.Event | None = None
    now_s: float = 0.0
    num_checks: int = 0
    draining: Draining = field(default_factory=Draining)

    def __post_init__(self) -> None:
        self.readiness = Readiness(self.draining, self.editor_fault, cast(JobsPort, self), lambda: self.now_s)

    async def editor_fault(self) -> str | None:
        self.num_checks += 1
        await asyncio.sleep(0)
        if isinstance(self.editor, Exception):
            raise self.editor
        return self.editor

    async def fault(self) -> str | None:
        if isinstance(self.jobs, Exception):
            raise self.jobs
        if isinstance(self.jobs, asyncio.Event):
            await self.jobs.wait()
            return None
        return self.jobs

    def reason(self) -> Any:
        """The reason after the last one has become too old."""
        self.now_s += CHECK_EVERY_S
        return asyncio.run(self.readiness.reason())


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({}, None),
        ({"editor": "no Editor is up; 1 starting"}, "editor"),
        ({"editor": RuntimeError("Serve does not answer")}, "editor"),
        ({"jobs": "store"}, "store"),
        ({"jobs": ServiceUnavailable("The jobs are not available right now; try again.")}, "jobs"),
        ({"jobs": RuntimeError("no such deployment")}, "jobs"),
        ({"jobs": TimeoutError()}, "jobs"),
        ({"editor": "no Editor is up", "jobs": "store"}, "editor"),
    ],
    ids=str,
)
def test_one_word_says_what_is_wrong(faults: dict[str, Any], reason: str | None) -> None:
    assert Behind(**faults).reason() == reason


def test_jobs_that_do_not_answer_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "JOBS_TIMEOUT_S", 0.0)
    assert Behind(jobs=asyncio.Event()).reason() == "jobs"


def test_concurrent_callers_share_one_check_and_its_result_is_kept_for_a_second() -> None:
    behind = Behind(editor="broken")

    async def ask(count: int) -> list[str | None]:
        return list(await asyncio.gather(*(behind.readiness.reason() for _ in range(count))))

    async def scenario() -> None:
        assert await ask(5) == ["editor"] * 5
        behind.editor = None
        behind.now_s += CHECK_EVERY_S / 2
        assert await ask(5) == ["editor"] * 5
        assert behind.num_checks == 1
        behind.now_s += CHECK_EVERY_S
        assert await ask(5) == [None] * 5
        assert behind.num_checks == 2

    asyncio.run(scenario())


def test_draining_is_not_cached_and_needs_no_check() -> None:
    behind = Behind()
    assert behind.reason() is None
    behind.draining.begin()
    assert asyncio.run(behind.readiness.reason()) == "draining"
    behind.draining.end()
    assert asyncio.run(behind.readiness.reason()) is None
    assert behind.num_checks == 1


def test_the_detail_is_logged_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    behind = Behind()
    with caplog.at_level("INFO"):
        for editor in (
            None,
            "no Editor is up; 1 starting",
            "no Editor is up; 1 starting",
            "no Editor is healthy",
            None,
        ):
            behind.editor = editor
            behind.reason()
    assert [record.message for record in caplog.records if record.name == module.__name__] == [
        "not ready: no Editor is up; 1 starting",
        "not ready: no Editor is healthy",
        "ready again",
    ]
