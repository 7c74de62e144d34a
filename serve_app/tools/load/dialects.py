"""Sends an edit of a load in a dialect, and waits for its picture."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx2

from serve_app.tools.load.mix import LoadEdit

POLL_S = 0.2
"""Between questions for the state of a job whose server does not wait for news."""


@dataclass(frozen=True)
class Answer:
    """Of one request.

    Attributes:
        error: None, or the kind of the error: `HTTP 429`, `job FAILED`, `ReadTimeout`.
        first_preview_at: when the first preview came, on the monotonic clock.
    """

    error: str | None = None
    first_preview_at: float | None = None


Send = Callable[[], Awaitable[Answer]]
"""Sends one request, which is complete, and waits for its answer."""

Prepare = Callable[[httpx2.AsyncClient, LoadEdit], Send]
"""Builds the request of an edit; may take as long as encoding its pictures."""


class _Failed(Exception):
    """An answer without a picture; its text is the kind of error."""


def prepare_runpod(http: httpx2.AsyncClient, edit: LoadEdit, **job: Any) -> Send:
    """A job of one picture: `/runsync`, or with previews `/run` and `/stream`. `job`: further fields beside its input,
    such as `webhook`."""
    kind, pictures = edit.kind, [base64.b64encode(picture).decode("ascii") for picture in edit.pictures()]
    given: dict[str, Any] = {"image": pictures[0]} if len(pictures) == 1 else {"images": pictures}
    given |= {**_fields(edit), "width": kind.output.width, "height": kind.output.height}
    if kind.previews:
        given["partial_images"] = kind.previews
    body = json.dumps({"input": given | kind.fields, **job}).encode()
    stream = bool(kind.previews)
    return lambda: _answer(http, _stream_job(http, body) if stream else _run_job(http, body))


def prepare_openai(http: httpx2.AsyncClient, edit: LoadEdit) -> Send:
    """A form to `/v1/images/edits`, which every server of the dialect takes."""
    kind = edit.kind
    fields = {**_fields(edit), "size": kind.size, "n": 1}
    if kind.previews:
        fields |= {"stream": True, "partial_images": kind.previews}
    else:
        fields["response_format"] = "b64_json"
    data = {
        name: json.dumps(value) if isinstance(value, bool) else value for name, value in (fields | kind.fields).items()
    }
    files = [("image", (f"{number}.jpg", picture, "image/jpeg")) for number, picture in enumerate(edit.pictures())]
    path = "/images/edits" if http.base_url.path.rstrip("/").endswith("/v1") else "/v1/images/edits"
    request = http.build_request("POST", path, data=data, files=files)
    stream = bool(kind.previews)
    return lambda: _answer(http, _stream_edit(http, request) if stream else _run_edit(http, request))


DIALECTS: dict[str, Prepare] = {"runpod": prepare_runpod, "openai": prepare_openai}


def _fields(edit: LoadEdit) -> dict[str, Any]:
    """The fields that both dialects have; those at their defaults are left out, as not every server knows them."""
    kind = edit.kind
    fields: dict[str, Any] = {
        "prompt": edit.prompt,
        "seed": edit.number,
        "num_inference_steps": kind.num_inference_steps,
    }
    if kind.true_cfg_scale != 1:
        fields["true_cfg_scale"] = kind.true_cfg_scale
    if kind.rewrite_prompt:
        fields["rewrite_prompt"] = True
    return fields


async def _answer(http: httpx2.AsyncClient, sent: Awaitable[float | None]) -> Answer:
    """The client's timeout is for each exchange; here it is for all of a request, polls included."""
    try:
        async with asyncio.timeout(http.timeout.read):
            return Answer(first_preview_at=await sent)
    except TimeoutError:
        return Answer("no answer in time")
    except _Failed as problem:
        return Answer(str(problem))
    except httpx2.HTTPError as problem:
        return Answer(type(problem).__name__)
    except (ValueError, KeyError, TypeError, IndexError):
        return Answer("no picture in the answer")


async def _run_job(http: httpx2.AsyncClient, body: bytes) -> None:
    job = _json(await http.post("/runsync", content=body, headers=_JSON))
    while not _has_ended(job):
        await asyncio.sleep(POLL_S)
        job = _json(await http.get(f"/status/{job['id']}"))
    if not job.get("output"):
        raise ValueError("no output")


async def _stream_job(http: httpx2.AsyncClient, body: bytes) -> float | None:
    job_id = _json(await http.post("/run", content=body, headers=_JSON))["id"]
    first_preview_at = None
    while True:
        news = _json(await http.get(f"/stream/{job_id}"))
        items = [item["output"] for item in news.get("stream", ())]
        if first_preview_at is None and any(_is_preview(item) for item in items):
            first_preview_at = time.monotonic()
        if _has_ended(news):
            return first_preview_at
        if not items:
            await asyncio.sleep(POLL_S)


def _is_preview(item: object) -> bool:
    """Whether an item of a stream has a preview. Of this service's items, some progress reports do; other servers'
    items are taken for previews."""
    if isinstance(item, dict) and item.get("type") in ("progress", "image"):
        return item.get("preview") is not None
    return True


def _has_ended(job: dict[str, Any]) -> bool:
    """Whether the job is COMPLETED; raises if it has ended otherwise."""
    status = job["status"]
    if status in ("FAILED", "TIMED_OUT", "CANCELLED"):
        raise _Failed(f"job {status}")
    return bool(status == "COMPLETED")


async def _run_edit(http: httpx2.AsyncClient, request: httpx2.Request) -> None:
    picture = _json(await http.send(request))["data"][0]
    if not (picture.get("b64_json") or picture.get("url")):
        raise ValueError("no picture")


async def _stream_edit(http: httpx2.AsyncClient, request: httpx2.Request) -> float | None:
    response = await http.send(request, stream=True)
    try:
        if response.status_code != httpx2.codes.OK:
            raise _Failed(f"HTTP {response.status_code}")
        return await _first_preview(_events(response))
    finally:
        await response.aclose()


async def _first_preview(events: AsyncIterator[dict[str, Any]]) -> float | None:
    first_preview_at, is_done = None, False
    async for event in events:
        if "error" in event:
            raise _Failed("error in the stream")
        name = str(event.get("type"))
        if name.endswith(".partial_image") and first_preview_at is None:
            first_preview_at = time.monotonic()
        is_done = is_done or name.endswith(".completed")
    if not is_done:
        raise _Failed("the stream ended early")
    return first_preview_at


async def _events(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data:") and (data := line.removeprefix("data:").strip()) != "[DONE]":
            yield json.loads(data)


_JSON = {"content-type": "application/json"}


def _json(response: httpx2.Response) -> dict[str, Any]:
    if response.status_code != httpx2.codes.OK:
        raise _Failed(f"HTTP {response.status_code}")
    body: dict[str, Any] = response.json()
    return body
