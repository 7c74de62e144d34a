"""Requests with an Idempotency-Key: jobs that outlive their connection."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import pytest

from serve_app.config import AppSettings
from serve_app.edits.job import JobState
from serve_app.errors import (
    DeadlineExceeded,
    InvalidInput,
    JobUnreadable,
    OutOfMemory,
    Overloaded,
    ServiceError,
    ServiceUnavailable,
)
from serve_app.ingress.pictures.decoders import DecoderPool
from tests.ingress.openai_harness import (
    DATA_URL,
    EDITS,
    PNG,
    WIDE,
    Call,
    Harness,
    error_of,
    events,
    harness,
    kept_harness,
)
from tests.waiting import until_async

KEY = {"Idempotency-Key": "key-1"}


@pytest.fixture
def app(tiny_settings: AppSettings) -> Harness:
    return kept_harness(tiny_settings)


def keyed(app: Harness, **fields: Any) -> Any:
    return app.client.post(EDITS, json={"prompt": "x", "image": DATA_URL, **fields}, headers=KEY)


def test_a_job_is_answered_as_an_edit_is(app: Harness) -> None:
    body = keyed(app, n=2, seed=5, size="64x64").json()
    assert body.pop("created") == 1002
    without = app.edit("json", n=2, seed=5, size="64x64").json()
    without.pop("created")
    assert body == without
    spec = next(iter(app.jobs.specs.values()))
    assert spec.id.startswith("img-")
    assert [edit.request_id for edit in spec.edits] == [f"{spec.id}/0", f"{spec.id}/1"]
    assert (spec.seed, spec.pictures_of) == (5, (0, 0))
    assert spec.retention_s == app.settings.jobs.async_retention_s


def test_a_repeat_is_the_same_job_with_the_same_drawn_seed(app: Harness) -> None:
    first, again = keyed(app), keyed(app)
    assert first.json() == again.json()
    assert len(app.jobs.specs) == len(app.editor.requests) == 1
    assert app.jobs.num_reads == 1  # the pictures are fetched and rendered once, too


@pytest.mark.parametrize(
    ("path", "wrap"), [("/run", lambda fields: {"input": fields}), (EDITS, dict)], ids=["runpod", "openai"]
)
def test_each_api_key_has_idempotency_keys_of_its_own(
    tiny_settings: AppSettings, path: str, wrap: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    app = harness(tiny_settings, ("alice:one", "bob:two"))

    def send(key: str, prompt: str) -> int:
        headers = {"Authorization": f"Bearer {key}", **KEY}
        return int(app.client.post(path, json=wrap({"image": DATA_URL, "prompt": prompt}), headers=headers).status_code)

    assert [send("one", "x"), send("one", "x"), send("one", "y")] == [200, 200, 422]
    assert len(app.jobs.specs) == 1
    assert [send("two", "y"), send("two", "y"), send("two", "x")] == [200, 200, 422]
    assert {spec.client for spec in app.jobs.specs.values()} == {"alice", "bob"}


SAME: dict[str, dict[str, Any]] = {
    "as a file": {"files": [("prompt", (None, "x")), ("image", ("a.png", PNG))]},
    "under another name": {"files": [("image[]", ("b.png", PNG)), ("prompt", (None, "x"))]},
    "in base64": {"files": [("url", (None, base64.b64encode(PNG).decode())), ("prompt", (None, "x"))]},
    "urlencoded": {"data": {"url": DATA_URL, "prompt": "x"}},
    "as a stream": {"json": {"images": [{"image_url": DATA_URL}], "prompt": "x", "stream": True, "partial_images": 2}},
}


@pytest.mark.parametrize("request_", SAME.values(), ids=SAME.keys())
def test_the_same_in_another_encoding_is_a_repeat(app: Harness, request_: dict[str, Any]) -> None:
    keyed(app)
    assert app.client.post(EDITS, headers=KEY, **request_).status_code == 200
    assert len(app.jobs.specs) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "y"},
        {"seed": 0},
        {"n": 2},
        {"azimuth": 0},
        {"image": base64.b64encode(WIDE).decode()},
        {"image": [DATA_URL, DATA_URL]},
    ],
    ids=str,
)
def test_another_edit_with_the_same_key_is_refused(app: Harness, fields: dict[str, Any]) -> None:
    keyed(app)
    assert error_of(keyed(app, **fields), 422)["code"] == "idempotency_key_reused"


def test_without_a_key_there_is_no_job(app: Harness) -> None:
    app.edit("form")
    assert app.jobs.specs == {}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("state", "status", "code"),
    [
        (JobState.FAILED, 500, "edit_failed"),
        (JobState.CANCELLED, 499, "cancelled"),
        (JobState.TIMED_OUT, 504, "deadline_exceeded"),
    ],
)
def test_a_job_that_did_not_complete_is_an_error(
    app: Harness, state: JobState, status: int, code: str, stream: bool
) -> None:
    app.jobs.ends = state
    problem = error_of(keyed(app, stream=stream), status)
    assert (problem["code"], problem["message"]) == (code, "broken")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "problem",
    [
        ServiceUnavailable("gone"),
        OutOfMemory("too large"),
        DeadlineExceeded("late"),
        InvalidInput("bad"),
        JobUnreadable("damaged"),
        Overloaded("full"),
    ],
    ids=lambda problem: problem.code,
)
def test_a_jobs_error_is_that_of_the_same_edit_without_a_key(app: Harness, problem: ServiceError, stream: bool) -> None:
    app.editor.problem = problem
    without = error_of(app.edit("json", stream=stream), problem.status)
    app.jobs.ends, app.jobs.problem = JobState.FAILED, problem
    with_key = keyed(app, stream=stream)
    assert error_of(with_key, problem.status) == without
    assert ("retry-after" in with_key.headers) == (problem.status in (429, 503))


def test_a_repeat_is_answered_while_the_service_drains_and_nothing_else(app: Harness) -> None:
    first = keyed(app)
    app.backend.draining.begin()
    assert keyed(app).json() == first.json()
    assert len(app.shared) == 0
    new = app.client.post(EDITS, json={"prompt": "x", "image": DATA_URL}, headers={"Idempotency-Key": "new"})
    assert "takes no new work" in error_of(new, 503)["message"]
    assert error_of(keyed(app, prompt="y"), 422)["code"] == "idempotency_key_reused"
    assert len(app.jobs.specs) == 1


def test_a_repeat_is_found_before_its_pictures_are_decoded(app: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    first = keyed(app, size="64x32")

    def refuse(*args: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(DecoderPool, "decode", refuse)
    assert keyed(app, size="64x32").json() == first.json()


def test_a_job_is_streamed_at_its_end(app: Harness) -> None:
    app.jobs.num_waits = 3
    found = events(keyed(app, stream=True, partial_images=3, n=2, seed=5).text)
    assert [event.name for event in found] == ["image_edit.completed"] * 2
    assert [(event.data["image_index"], event.data["seed"]) for event in found] == [(0, 5), (1, 6)]
    # A job's previews are not stored.
    assert [request.num_previews for request in app.editor.requests] == [0, 0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_job_goes_on_when_its_client_leaves(app: Harness, stream: bool) -> None:
    async def scenario() -> None:
        app.jobs.num_waits = None
        fields = {"prompt": "x", "image": DATA_URL, "stream": stream}
        call = Call(app.app, fields, idempotency_key="key-1")
        await until_async(lambda: len(app.jobs.specs) == 1)
        call.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.task

    asyncio.run(scenario())
    app.jobs.num_waits = 0
    assert app.jobs.cancelled == []
    assert keyed(app).status_code == 200
    assert len(app.jobs.specs) == 1


def test_an_empty_key_is_refused(app: Harness) -> None:
    response = app.client.post(EDITS, json={"prompt": "x", "image": DATA_URL}, headers={"Idempotency-Key": ""})
    assert "Idempotency-Key" in error_of(response, 400)["message"]
    assert app.editor.requests == []
