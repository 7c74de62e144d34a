"""Deadlines over HTTP, in both dialects: 504, and the edit leaves the editor."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serve_app.config import AppSettings, JobSettings, SqliteStoreSettings
from serve_app.edits.request import EditRequest, EditResult, Progress, SharedPictures
from serve_app.edits.service import EditService, OnProgress
from serve_app.ingress.app import build_app
from serve_app.ingress.backend import Backend
from serve_app.ingress.pictures.prepare import Preparer
from serve_app.ingress.runpod.answers import webhook_body
from serve_app.jobs.service import JobService
from serve_app.jobs.store_link import open_store
from tests.fakes import FakeEditor
from tests.ingress.openai_harness import DATA_URL, EDITS, PNG, Call, error_of, events, harness, shared_decoders
from tests.pictures import photograph, to_base64
from tests.waiting import until_async

PICTURE = to_base64(photograph("astronaut", 64, 64))


TIMEOUT_S = 10.0
LATER_S = 12.0  # less than the silence after which a stream gets a comment


class Endless(FakeEditor):
    """Is never done; sends a preview first where one is wanted. Once an edit is there, the loop's clock jumps ahead, so
    that its deadline passes however slow the machine is."""

    async def edit(
        self, request: EditRequest, pictures: SharedPictures, on_progress: OnProgress, timeout_s: float | None = None
    ) -> EditResult:
        if request.num_previews:
            on_progress(Progress(1, 4, b"preview"))
        self.gate = asyncio.Semaphore(0)
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, _jump, loop)  # after its progress has arrived everywhere
        return await super().edit(request, pictures, on_progress, timeout_s)


def _jump(loop: asyncio.AbstractEventLoop) -> None:
    time_of = loop.time
    vars(loop)["time"] = lambda: time_of() + LATER_S


@contextmanager
def serving(
    settings: AppSettings, folder: Path, request_timeout_s: float = 600.0
) -> Iterator[tuple[TestClient, Endless]]:
    jobs = JobSettings(store=SqliteStoreSettings(path=str(folder / "jobs.sqlite3")))
    limits = settings.limits.model_copy(update={"request_timeout_s": request_timeout_s})
    settings = settings.model_copy(update={"jobs": jobs, "limits": limits})
    editor = Endless()
    service = EditService(editor, None)
    runner = JobService(jobs, service, open_store(jobs.store), SharedPictures, webhook_body)

    async def workers(num_busy: int) -> dict[str, int]:
        return {}

    backend = Backend(settings, runner, service, SharedPictures, workers, Preparer(settings, shared_decoders()))
    with TestClient(build_app(backend), raise_server_exceptions=False) as client:
        assert client.portal is not None
        client.portal.call(runner.start)
        yield client, editor
        client.portal.call(runner.close)


def check_that_it_left(editor: Endless) -> None:
    assert editor.num_cancelled == len(editor.requests) == 1
    # The engine knows the deadline, too, and drops the edit at its next step whatever becomes of its client.
    (left_s,) = editor.timeouts_s
    assert left_s is not None
    assert 0 < left_s <= TIMEOUT_S


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "key"}], ids=["connection", "job"])
@pytest.mark.parametrize("own", [True, False], ids=["client's", "server's"])
@pytest.mark.parametrize("stream", [True, False])
def test_an_openai_edit_past_its_deadline(
    tiny_settings: AppSettings, tmp_path: Path, headers: dict[str, str], own: bool, stream: bool
) -> None:
    fields = {"prompt": "x", "stream": json_flag(stream), **({"timeout_s": str(TIMEOUT_S)} if own else {})}
    with serving(tiny_settings, tmp_path, 600.0 if own else TIMEOUT_S) as (client, editor):
        response = client.post(EDITS, data=fields, files={"image": PNG}, headers=headers)
        problem = error_of(response, 504)
        assert problem["code"] == "deadline_exceeded"
        assert "within 10 s (timeout_s)" in problem["message"]
        check_that_it_left(editor)


def json_flag(value: bool) -> str:
    return "true" if value else "false"


def test_a_stream_past_its_deadline_ends_with_an_error(tiny_settings: AppSettings, tmp_path: Path) -> None:
    fields = {"prompt": "x", "stream": "true", "partial_images": "1", "timeout_s": str(TIMEOUT_S)}
    with serving(tiny_settings, tmp_path) as (client, editor):
        response = client.post(EDITS, data=fields, files={"image": PNG})
        assert response.status_code == 200
        preview, last = events(response.text)
        assert preview.name == "image_edit.partial_image"
        assert last.data["error"]["code"] == "deadline_exceeded"
        check_that_it_left(editor)


def body(**fields: Any) -> dict[str, Any]:
    return {"input": {"image": PICTURE, "prompt": "x", **fields}}


def test_a_runpod_job_past_the_clients_timeout(tiny_settings: AppSettings, tmp_path: Path) -> None:
    with serving(tiny_settings, tmp_path) as (client, editor):
        response = client.post("/runsync", json=body(timeout_s=TIMEOUT_S))
        assert (response.status_code, response.json()) == (
            504,
            {"error": "The request was not done within 10 s (timeout_s)."},
        )
        check_that_it_left(editor)


def test_a_runpod_job_past_its_timeout_beside_a_longer_execution_timeout(
    tiny_settings: AppSettings, tmp_path: Path
) -> None:
    with serving(tiny_settings, tmp_path) as (client, _):
        policy = {"executionTimeout": 60_000}
        response = client.post("/runsync", json={**body(timeout_s=TIMEOUT_S), "policy": policy})
        assert response.status_code == 504
        assert "(timeout_s)" in response.json()["error"]


def test_a_runpod_job_past_the_servers_timeout(tiny_settings: AppSettings, tmp_path: Path) -> None:
    with serving(tiny_settings, tmp_path, TIMEOUT_S) as (client, editor):
        assert client.post("/runsync", json=body()).status_code == 504
        assert editor.num_cancelled == 1
        assert client.post("/runsync", json=body(timeout_s=TIMEOUT_S + 0.1)).status_code == 400


def test_a_queued_job_past_its_timeout_is_failed_for_those_who_poll(tiny_settings: AppSettings, tmp_path: Path) -> None:
    with serving(tiny_settings, tmp_path) as (client, editor):
        job_id = client.post("/run", json=body(timeout_s=TIMEOUT_S)).json()["id"]
        envelope = client.get(f"/status-sync/{job_id}?wait=20000").json()
        assert envelope["status"] == "FAILED"
        assert "(timeout_s)" in envelope["error"]
        check_that_it_left(editor)


def test_a_policys_execution_timeout_is_a_failed_job_as_ever(tiny_settings: AppSettings, tmp_path: Path) -> None:
    # It may be longer than the limit for requests without one.
    with serving(tiny_settings, tmp_path, TIMEOUT_S) as (client, _):
        response = client.post("/runsync", json={**body(), "policy": {"executionTimeout": 11_000}})
        assert response.status_code == 200
        envelope = response.json()
        assert (envelope["status"], envelope["error"]) == ("FAILED", "executionTimeout exceeded")


@pytest.mark.parametrize("timeout_s", [0, -1, 601, 1e400, "soon", True])
def test_a_timeout_out_of_bounds_names_the_field(tiny_settings: AppSettings, tmp_path: Path, timeout_s: Any) -> None:
    with serving(tiny_settings, tmp_path) as (client, editor):
        if timeout_s != 1e400:
            response = client.post("/runsync", json=body(timeout_s=timeout_s))
            assert response.status_code == 400
            assert "input.timeout_s" in response.json()["error"]
        fields = {"prompt": "x", "timeout_s": str(timeout_s)}
        assert error_of(client.post(EDITS, data=fields, files={"image": PNG}), 400)["param"] == "timeout_s"
        assert editor.requests == []


def test_the_time_that_pictures_take_counts(
    tiny_settings: AppSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Preparer._decode_set

    async def slowly(self: Preparer, *args: Any) -> Any:
        _jump(asyncio.get_running_loop())
        return await decode(self, *args)

    monkeypatch.setattr(Preparer, "_decode_set", slowly)
    fields = {"prompt": "x", "timeout_s": str(LATER_S + TIMEOUT_S)}
    with serving(tiny_settings, tmp_path) as (client, editor):
        error_of(client.post(EDITS, data=fields, files={"image": PNG}), 504)
        check_that_it_left(editor)


def test_an_answer_whose_job_never_ends_is_given_up(tiny_settings: AppSettings) -> None:
    app = harness(tiny_settings)
    app.jobs.num_waits = None  # as while the job store is away

    async def scenario() -> None:
        fields = {"prompt": "x", "image": DATA_URL, "timeout_s": TIMEOUT_S}
        call = Call(app.app, fields, idempotency_key="key")
        await until_async(lambda: len(app.jobs.specs) == 1)
        for _ in range(2):  # its deadline, and the margin after it
            _jump(asyncio.get_running_loop())
        await asyncio.wait_for(call.task, 200)
        assert call.status == 504

    asyncio.run(scenario())
