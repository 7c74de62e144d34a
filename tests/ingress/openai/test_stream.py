"""OpenAI's streams: their events, errors in the middle, and clients that disconnect."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

import pytest

from serve_app.config import AppSettings
from serve_app.edits.request import EditRequest, EditResult, Progress, SharedPictures
from serve_app.edits.service import Deadline, OnProgress
from serve_app.errors import EditFailed, ServiceError
from serve_app.ingress.openai import stream as openai_stream
from serve_app.ingress.openai.answers import OpenAILook
from serve_app.ingress.openai.body import OpenAIBody
from serve_app.ingress.openai.parse import parse_body
from serve_app.ingress.openai.request import OpenAIEdit
from serve_app.ingress.openai.stream import KEEP_ALIVE, drawing, server_sent
from serve_app.ingress.pictures.prepare import PictureSource
from tests.fakes import TIMINGS, TOKENS
from tests.ingress.openai_harness import DATA_URL, PNG, Call, Event, Harness, error_of, events, kept_harness
from tests.waiting import until_async

LOOK = OpenAILook(output_format="png", size="256x256", quality="auto")


@pytest.fixture
def app(tiny_settings: AppSettings) -> Harness:
    return kept_harness(tiny_settings)


@pytest.mark.parametrize("encoding", ["form", "json"])
def test_a_stream_shows_previews_and_then_the_picture(app: Harness, encoding: str) -> None:
    response = app.edit(encoding, stream=True, partial_images=2, seed=7, output_format="jpeg", quality="low")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-request-id"]
    assert app.editor.requests[0].num_previews == 2
    first, second, last = events(response.text)
    look = {"size": "256x256", "quality": "low", "background": "opaque", "output_format": "jpeg"}
    for number, event in enumerate((first, second)):
        assert event.name == event.data["type"] == "image_edit.partial_image"
        assert event.data.pop("created_at") > 1.7e9
        assert event.data == {
            **look,
            "type": event.name,
            "b64_json": base64.b64encode(f"preview {number + 1}".encode()).decode(),
            "partial_image_index": number,
        }
    assert last.name == "image_edit.completed"
    assert last.data.pop("created_at") > 1.7e9
    assert last.data == {
        **look,
        "type": last.name,
        "b64_json": base64.b64encode(b"x").decode(),
        "revised_prompt": "x",
        "seed": 7,
        "timings": asdict(TIMINGS),
        "usage": {
            "input_tokens": 36,
            "input_tokens_details": {"image_tokens": 16, "text_tokens": 20},
            "output_tokens": 16,
            "total_tokens": 52,
        },
    }


def test_without_partial_images_there_is_the_picture_alone(app: Harness) -> None:
    assert [event.name for event in events(app.edit("form", stream=True).text)] == ["image_edit.completed"]


def test_several_pictures_tell_which_they_are(app: Harness) -> None:
    found = events(app.edit("form", stream=True, n=3, partial_images=1, seed=5).text)
    completed = [event.data for event in found if event.name == "image_edit.completed"]
    assert sorted((event["image_index"], event["seed"]) for event in completed) == [(0, 5), (1, 6), (2, 7)]
    previews = [event.data for event in found if event.name == "image_edit.partial_image"]
    assert sorted((event["image_index"], event["partial_image_index"]) for event in previews) == [
        (0, 0),
        (1, 0),
        (2, 0),
    ]


def test_the_accept_header_makes_no_stream(app: Harness) -> None:
    response = app.form(("prompt", "x"), ("image", PNG), accept="text/event-stream")
    assert response.headers["content-type"] == "application/json"


def test_what_is_wrong_before_the_first_byte_is_a_status(app: Harness) -> None:
    error_of(app.edit("form", stream=True, n=11), 400)
    error_of(app.form(("prompt", "x"), ("stream", "true"), ("image", b"junk")), 400)


async def stream_of(app: Harness, **fields: Any) -> AsyncGenerator[bytes]:
    """The stream of an edit, as the route makes it."""
    edit = OpenAIEdit.model_validate({"prompt": "x", "stream": True, **fields})
    parsed = parse_body(OpenAIBody(edit, (PictureSource("image", PNG),)), app.settings)
    prepared = await app.backend.prepare("request", parsed)
    return server_sent(drawing(app.backend, prepared, Deadline()), LOOK, alone=len(prepared.edits) == 1)


async def next_event(stream: AsyncGenerator[bytes]) -> Event:
    return events((await asyncio.wait_for(anext(stream), 5)).decode())[0]


def test_each_picture_is_told_when_it_is_done(app: Harness) -> None:
    async def scenario() -> None:
        app.editor.gate = asyncio.Semaphore(0)
        stream = await stream_of(app, n=2)
        first = asyncio.create_task(next_event(stream))
        await until_async(lambda: len(app.editor.requests) == 2)  # side by side, not one after the other
        assert not first.done()
        app.editor.gate.release()
        assert (await first).data["type"] == "image_edit.completed"
        second = asyncio.create_task(next_event(stream))
        await asyncio.sleep(0.02)
        assert not second.done()
        app.editor.gate.release()
        assert (await second).data["type"] == "image_edit.completed"
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(scenario())


class Stumbling:
    """An EditorPort that sends a preview and then fails; without a problem it starts again."""

    def __init__(self, problem: Exception | None) -> None:
        self.problem = problem

    async def edit(
        self, request: EditRequest, pictures: SharedPictures, on_progress: OnProgress, timeout_s: float | None = None
    ) -> EditResult:
        for step in (1, 2):
            on_progress(Progress(step, 4, b"preview"))
        if self.problem is not None:
            raise self.problem
        for step in (1, 2):
            on_progress(Progress(step, 4, b"preview"))
        return EditResult(b"drawn", "image/png", TIMINGS, TOKENS)


@pytest.mark.parametrize(
    ("problem", "message", "code"),
    [
        (EditFailed("The edit failed inside the model."), "The edit failed inside the model.", "edit_failed"),
        (RuntimeError("secret"), "Internal error; the server's log has the reason.", "internal_error"),
    ],
)
def test_an_error_in_mid_stream_is_its_last_event(
    app: Harness, monkeypatch: pytest.MonkeyPatch, problem: Exception, message: str, code: str
) -> None:
    monkeypatch.setattr(app.editor, "edit", Stumbling(problem).edit)
    response = app.edit("form", stream=True, partial_images=1)
    assert response.status_code == 200
    first, last = events(response.text)
    assert first.name == "image_edit.partial_image"
    assert last.name is None
    assert last.data == {"error": {"message": message, "type": "server_error", "param": None, "code": code}}


def test_an_edit_that_is_run_once_more_tells_its_previews_once(app: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.editor, "edit", Stumbling(None).edit)
    found = events(app.edit("form", stream=True, partial_images=2).text)
    assert [event.data.get("partial_image_index") for event in found] == [0, 1, None]


def test_a_paused_picture_is_a_comment(app: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pausing(Stumbling):
        async def edit(self, request: Any, pictures: Any, on_progress: OnProgress, timeout_s: Any = None) -> Any:
            on_progress(Progress(2, 40, is_paused=True))
            return await super().edit(request, pictures, on_progress)

    monkeypatch.setattr(app.editor, "edit", Pausing(None).edit)
    text = app.edit("form", stream=True).text
    assert text.startswith(": picture 0 is paused after 2 of 40 steps\n\n")
    assert [event.name for event in events(text.partition("\n\n")[2])] == ["image_edit.completed"]


def test_silence_is_broken_by_comments(app: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_stream, "KEEP_ALIVE_S", 0.01)

    async def scenario() -> None:
        app.editor.gate = asyncio.Semaphore(0)
        stream = await stream_of(app)
        assert [await anext(stream) for _ in range(3)] == [KEEP_ALIVE] * 3
        # From here on an error is the stream's own.
        app.editor.problem = EditFailed("broken")
        app.editor.gate.release()
        rest = [chunk async for chunk in stream if chunk != KEEP_ALIVE]
        assert [json.loads(chunk.removeprefix(b"data: "))["error"]["code"] for chunk in rest] == ["edit_failed"]

    asyncio.run(scenario())


def test_an_error_before_the_first_event_is_raised(app: Harness) -> None:
    async def scenario() -> None:
        app.editor.problem = EditFailed("broken")
        with pytest.raises(ServiceError, match="broken"):
            await anext(await stream_of(app))

    asyncio.run(scenario())


# A client that leaves. Cancelled is what Serve does to a request whose client has gone.

EDIT: dict[str, Any] = {"prompt": "x", "image": DATA_URL, "n": 3}


@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_request_cancels_its_edits(app: Harness, stream: bool) -> None:
    async def scenario() -> None:
        app.editor.gate = asyncio.Semaphore(0)
        call = Call(app.app, {**EDIT, "stream": stream})
        await until_async(lambda: len(app.editor.requests) == 3)
        call.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.task
        assert app.editor.num_cancelled == 3

    asyncio.run(scenario())


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
def test_leaving_a_stream_cancels_what_is_not_drawn_yet(
    app: Harness, spec: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openai_stream, "KEEP_ALIVE_S", 0.05)  # under 2.4 only a failing send shows it

    async def scenario() -> None:
        gate = app.editor.gate = asyncio.Semaphore(0)
        call = Call(app.app, {**EDIT, "stream": True}, spec=spec)
        await until_async(lambda: len(app.editor.requests) == 3)
        gate.release()
        await until_async(lambda: "image_edit.completed" in call.text)
        assert app.editor.num_cancelled == 0
        call.left.set()
        await asyncio.wait([call.task], timeout=5)
        assert call.task.done()
        assert call.task.exception() is None
        assert app.editor.num_cancelled == 2

    asyncio.run(scenario())
    assert "unexpected error" not in caplog.text


def test_a_closed_stream_cancels_its_edits_and_waits_for_them(app: Harness) -> None:
    async def scenario() -> None:
        gate = app.editor.gate = asyncio.Semaphore(0)
        stream = await stream_of(app, n=2)
        first = asyncio.create_task(next_event(stream))
        await until_async(lambda: len(app.editor.requests) == 2)
        gate.release()
        await first
        await stream.aclose()
        assert app.editor.num_cancelled == 1

    asyncio.run(scenario())


def test_an_upload_that_breaks_off_is_no_internal_error(app: Harness, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        call = Call(app.app, {}, content_type="application/json", whole=False)
        call.left.set()
        await asyncio.wait_for(call.task, 5)
        assert call.status == 499

    asyncio.run(scenario())
    assert "unexpected error" not in caplog.text
