"""The rewriter at an OpenAI-compatible server, which is real HTTP on this machine."""

import asyncio
import base64
import json
import logging
import socket
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from ray.exceptions import ObjectLostError
from ray.serve import Application

from serve_app.app import build
from serve_app.config import AppSettings, RewriterSettings
from serve_app.edits.request import EditOutcome, Pictures, PreparedPicture, Rewrite, SharedPictures
from serve_app.edits.service import EditService
from serve_app.rewriter import endpoint
from serve_app.rewriter.deployment import EndpointPort, open_rewriter
from serve_app.rewriter.instructions import FAILED, INSTRUCTIONS
from serve_app.serving.shared import PutPictures
from tests.fakes import FakeEditor, edit_request
from tests.network import Host, Script, hosting, repeats, sends, stalls

PICTURE = PreparedPicture(np.full((64, 96, 3), 200, np.uint8), np.zeros((32, 32, 3), np.uint8))
LARGE = PreparedPicture(np.zeros((512, 256, 3), np.uint8), np.zeros((32, 32, 3), np.uint8))
WISH = "make it better"
SECRET = "sk-a-secret"


def answering(content: object) -> Script:
    return responding(json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}))


def responding(text: str, status: str = "200 OK") -> Script:
    return sends(f"HTTP/1.1 {status}\r\ncontent-length: {len(text.encode())}\r\n\r\n{text}".encode())


GOOD = answering('{"instruction": "Brighten the sky."}')


def shared(pictures: Pictures) -> SharedPictures:
    """As the deployments share them, with a coroutine in place of Ray's reference, which is awaited, too."""

    async def read() -> Pictures:
        return pictures

    return SharedPictures(PutPictures(read(), "key"))


def edited(origin: str, *wishes: str, pictures: Pictures = (PICTURE,), **settings: Any) -> list[EditOutcome]:
    """The outcomes of edits, one after another, each with a rewrite."""
    given = RewriterSettings.model_validate({"endpoint": f"{origin}/v1", "model": "qwen", "timeout_s": 5, **settings})

    async def main() -> list[EditOutcome]:
        service = EditService(FakeEditor(), open_rewriter(given, None))
        outcomes = []
        for wish in wishes or (WISH,):
            request = replace(edit_request(wish), rewrite_prompt=True)
            outcomes.append(await service.run(request, shared(pictures)))
        return outcomes

    return asyncio.run(main())


def rewrite_of(script: Script, **settings: Any) -> Rewrite:
    with hosting(script) as host:
        (outcome,) = edited(host.origin, **settings)
    assert outcome.rewrite is not None
    assert outcome.final_prompt == (outcome.rewrite.prompt or WISH)
    return outcome.rewrite


def test_the_endpoint_gets_the_same_instructions_and_the_pictures(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(f"{SECRET}\n")
    with hosting(GOOD) as host:
        (outcome,) = edited(host.origin, pictures=(PICTURE, LARGE), key_file=str(key_file), max_picture_px=128 * 128)
    assert outcome.final_prompt == "Brighten the sky."
    head, _, body = host.requests[0].partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert lines[0] == "post /v1/chat/completions http/1.1"
    assert f"authorization: bearer {SECRET}" in lines
    sent = json.loads(body)
    system, user = sent.pop("messages")
    assert sent == {"model": "qwen", "max_tokens": 320, "temperature": 0}
    assert system == {"role": "system", "content": [{"type": "text", "text": INSTRUCTIONS}]}
    assert [part["text"] for part in user["content"] if part["type"] == "text"] == [
        "Picture 1: ",
        "Picture 2: ",
        f"The user's wish: {WISH}",
    ]
    first, second = (picture_of(part) for part in user["content"] if part["type"] == "image_url")
    assert first.size == (96, 64)
    assert np.abs(np.asarray(first, np.int16) - 200).max() <= 2
    assert second.size == (90, 181)  # the most of 128 x 128 pixels with the aspect of 256 x 512


def picture_of(part: Any) -> Image.Image:
    kind, _, data = part["image_url"]["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(BytesIO(base64.b64decode(data)))


def test_without_a_key_file_no_key_is_sent() -> None:
    with hosting(GOOD) as host:
        edited(host.origin)
    assert b"authorization" not in host.requests[0].lower()


def test_a_recent_rewrite_is_not_asked_for_again_and_a_failed_one_is() -> None:
    with hosting(GOOD) as host:
        outcomes = edited(host.origin, "a", "b", "a")
    assert [outcome.final_prompt for outcome in outcomes] == ["Brighten the sky."] * 3
    assert len(host.requests) == 2
    with hosting(answering("no JSON")) as host:
        edited(host.origin, "a", "a")
    assert len(host.requests) == 2


UNUSABLE: list[tuple[Script, str]] = [
    (answering("Make the sky orange."), "the rewriter's answer held no JSON object"),
    (answering('{"instruction": "<sks> back view"}'), "the rewriter's instruction held control tokens"),
    (answering(None), "the rewriter's endpoint answered with no message"),
    (answering([{"type": "text", "text": "x"}]), "the rewriter's endpoint answered with no message"),
    (responding("{}"), "the rewriter's endpoint answered with no message"),
    (responding('{"choices": []}'), "the rewriter's endpoint answered with no message"),
    (responding("[" * 100_000), "the rewriter's endpoint answered with no message"),
    (responding("no JSON"), "the rewriter's endpoint answered with no message"),
    (responding("{}", "500 Internal Server Error"), "the rewriter's endpoint answered with status 500"),
    (responding("{}", "302 Found\r\nlocation: /x"), "the rewriter's endpoint answered with status 302"),
    (sends(b""), "the rewriter's endpoint could not be reached, or did not answer in time"),
    (
        repeats(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
        "the rewriter's endpoint could not be reached, or did not answer in time",
    ),
]


@pytest.mark.parametrize(("script", "reason"), UNUSABLE)
def test_an_unusable_response_leaves_the_prompt_and_says_why(script: Script, reason: str) -> None:
    assert rewrite_of(script) == Rewrite(None, reason)


@pytest.mark.parametrize(
    "script",
    [
        stalls(),
        stalls(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"),
        repeats(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", b" ", gap_s=0.02),
    ],
)
def test_a_slow_endpoint_leaves_the_prompt_and_says_why(script: Script) -> None:
    assert rewrite_of(script, timeout_s=0.5) == Rewrite(None, "the rewriter took longer than 0.5 s")


def test_a_dead_endpoint_leaves_the_prompt_and_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        origin = f"http://127.0.0.1:{server.getsockname()[1]}"
    (outcome,) = edited(origin)
    assert outcome.final_prompt == WISH
    assert outcome.rewrite == Rewrite(None, "the rewriter's endpoint could not be reached, or did not answer in time")


@pytest.mark.parametrize("content", [None, "", " \n", f"{SECRET}\r\nx: y", f"{SECRET} \u2019"])
def test_without_a_usable_key_nothing_is_sent_and_no_log_has_it(
    content: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key_file = tmp_path / "key"
    if content is not None:
        key_file.write_text(content, encoding="utf-8", newline="")
    with hosting(GOOD) as host, caplog.at_level(logging.DEBUG):
        (outcome,) = edited(host.origin, key_file=str(key_file))
    assert outcome.rewrite == Rewrite(None, "the rewriter's key is not configured")
    assert host.requests == []
    assert SECRET not in caplog.text


def test_the_key_is_in_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "key").write_text(SECRET)
    with caplog.at_level(logging.DEBUG):
        for script in (GOOD, sends(b"HTTP/9.9 nonsense\r\n\r\n"), responding("{}", "401 Unauthorized")):
            rewrite_of(script, key_file=str(tmp_path / "key"))
    assert SECRET not in caplog.text


def test_calls_are_bounded_and_more_are_not_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MAX_ENDPOINT_CALLS", 1)
    monkeypatch.setattr(endpoint, "MAX_ENDPOINT_WAITING", 1)

    async def main(host: Host) -> list[Rewrite]:
        settings = RewriterSettings(endpoint=f"{host.origin}/v1", model="qwen")
        port = EndpointPort(settings)
        jobs = [replace(edit_request(name), rewrite_prompt=True) for name in "abc"]
        service = EditService(FakeEditor(), port)
        outcomes = await asyncio.gather(*(service.run(each, shared(())) for each in jobs))
        return [outcome.rewrite for outcome in outcomes if outcome.rewrite is not None]

    with hosting(GOOD) as host:
        rewrites = asyncio.run(main(host))
    assert sorted(rewrites, key=str) == [
        *[Rewrite("Brighten the sky.")] * 2,
        Rewrite(None, "too many prompts wait for the rewriter"),
    ]


def test_lost_pictures_are_the_editors_to_report() -> None:
    async def lost() -> Pictures:
        raise ObjectLostError("00ff", None, "")

    async def main() -> EditOutcome:
        settings = RewriterSettings(endpoint="http://127.0.0.1:9/v1", model="qwen")
        request = replace(edit_request(WISH), rewrite_prompt=True)
        pictures = SharedPictures(PutPictures(lost(), "key"))
        return await EditService(FakeEditor(), EndpointPort(settings)).run(request, pictures)

    assert asyncio.run(main()).rewrite == FAILED


# Settings


def test_an_endpoint_has_no_deployment(tiny_settings: AppSettings) -> None:
    settings = tiny_settings.model_copy(update={"rewriter": RewriterSettings(endpoint="http://x/v1", model="qwen")})
    names = {tiny: deployed(each) for tiny, each in (("weights", tiny_settings), ("endpoint", settings))}
    assert names == {"weights": {"Editor", "Jobs", "Rewriter"}, "endpoint": {"Editor", "Jobs"}}


def deployed(settings: AppSettings) -> set[str]:
    """What the Ingress is bound to."""
    arguments = build(settings)._bound_deployment.init_args
    return {each._bound_deployment.name for each in arguments if isinstance(each, Application)}


@pytest.mark.parametrize(
    "url", ["http://10.0.0.7:8000/v1", "https://example.com/v1beta/openai", "http://[::1]:8000/v1/"]
)
def test_base_urls_are_accepted(url: str) -> None:
    assert RewriterSettings(endpoint=url, model="x").endpoint == url.rstrip("/")


BASE = {"endpoint": "http://x/v1", "model": "qwen"}
SOURCE = {"path": "tiny:rewriter"}
WRONG: list[tuple[dict[str, object], str]] = [
    ({}, "needs exactly one of source"),
    ({**BASE, "source": SOURCE}, "needs exactly one of source"),
    ({"source": SOURCE, "model": "qwen"}, "model and key_file are for an endpoint"),
    ({"source": SOURCE, "key_file": "key"}, "model and key_file are for an endpoint"),
    ({"endpoint": "http://x/v1"}, "endpoint needs model"),
    ({**BASE, "device": "cpu", "max_batch_size": 2}, "device, max_batch_size: has no effect on an endpoint"),
    ({**BASE, "endpoint": "http://x:8000"}, "write http://x:8000/v1"),
    ({**BASE, "endpoint": "http://x/v1/chat/completions/"}, "write http://x/v1"),
    ({**BASE, "endpoint": "http://x/v1?key=1"}, "is no base URL"),
    ({**BASE, "endpoint": "http://user:word@x/v1"}, "is no base URL"),
    ({**BASE, "endpoint": "x:8000/v1"}, "is no base URL"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_wrong_settings_are_refused_with_what_to_do(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("?", r"\?")):
        RewriterSettings.model_validate(settings)
