"""OpenAI's routes, and what /docs shows of an edit's bodies, which the route reads itself."""

import asyncio
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from serve_app.edits.request import EditRequest
from serve_app.edits.service import Deadline
from serve_app.errors import ModelNotFound
from serve_app.ingress.admission import JobAdmission
from serve_app.ingress.auth import CLIENT
from serve_app.ingress.backend import Backend
from serve_app.ingress.openai.answers import (
    OpenAIAdapter,
    OpenAIAdapters,
    OpenAIError,
    OpenAIImages,
    OpenAILook,
    OpenAIModel,
    OpenAIModels,
    images,
)
from serve_app.ingress.openai.body import read_body
from serve_app.ingress.openai.jobs import draw_as_job, find_or_submit, result_of, wait_for_end
from serve_app.ingress.openai.parse import parse_body
from serve_app.ingress.openai.request import OpenAIForm, OpenAIJson
from serve_app.ingress.openai.stream import Draw, DrawResult, EventStream, drawing, server_sent
from serve_app.ingress.openapi import SAMPLE, error_responses
from serve_app.ingress.parsing.bodies import LateResponse
from serve_app.ingress.parsing.fields import RepeatKeyHeader
from serve_app.ingress.parsing.validation import default, echo

_ERRORS = error_responses(OpenAIError, 400, 401, 403, 404, 408, 413, 414, 415, 422, 429, 431, 500, 503, 504)
_CANCELLED = error_responses(OpenAIError, 499, description="The job of this Idempotency-Key was cancelled.")

_DATA_URL = f"data:image/png;base64,{SAMPLE}"
_PICTURE = {"images": [{"image_url": _DATA_URL}]}

_FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "single": ("One picture", {"prompt": "Make it sunset", "size": "1024x1024", "output_format": "png"}),
    "camera": ("The camera moved", {"azimuth": 45, "elevation": 30, "distance": 1.0, "seed": 42}),
    "views": ("All round, one picture each", {"views": "orbit", "elevation": 30}),
    "stream": ("A stream with previews", {"prompt": "Make it sunset", "stream": True, "partial_images": 2}),
}


def _examples(pictures: dict[str, Any], several: dict[str, Any]) -> dict[str, Any]:
    """The example requests with pictures in one encoding."""
    examples = {
        name: {"summary": summary, "value": {**pictures, **fields}} for name, (summary, fields) in _FIELDS.items()
    }
    both = {**several, "prompt": "Let the bears of both pictures walk together."}
    return {**examples, "several": {"summary": "Several references", "value": both}}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(ref_template="#/components/schemas/{model}")


_EDIT_REQUEST: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": _schema(OpenAIForm),
            "examples": _examples({"image": ["@bear.png"]}, {"image": ["@bear.png"], "url": [_DATA_URL]}),
        },
        "application/json": {
            "schema": _schema(OpenAIJson),
            "examples": _examples(_PICTURE, {"images": 2 * _PICTURE["images"]}),
        },
    },
}

_STREAM = """event: image_edit.partial_image
data: {"type": "image_edit.partial_image", "b64_json": "…", "created_at": 1767225600, "size": "1024x1024", \
"quality": "auto", "background": "opaque", "output_format": "png", "partial_image_index": 0}

event: image_edit.completed
data: {"type": "image_edit.completed", "b64_json": "…", "created_at": 1767225602, "size": "1024x1024", \
"quality": "auto", "background": "opaque", "output_format": "png", "revised_prompt": "Make it sunset", "seed": 42, \
"usage": {"input_tokens": 4420, "input_tokens_details": {"image_tokens": 4096, "text_tokens": 324}, \
"output_tokens": 4096, "total_tokens": 8516}}

"""

_EVENT = {
    "description": "One event; its data is JSON.",
    "type": "object",
    "required": ["data"],
    "properties": {
        "event": {"enum": ["image_edit.partial_image", "image_edit.completed"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}

_EDIT_RESPONSE: dict[str, Any] = {
    "description": "The pictures; or, with `stream`, events of the types image_edit.partial_image and "
    "image_edit.completed. An error in mid-stream is a last event with `error` in its data.",
    "content": {"text/event-stream": {"schema": _EVENT, "example": _STREAM}},
}


def openai_router(backend: Backend) -> APIRouter:
    """All routes of the dialect, without a prefix."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=_ERRORS)
    _add_edits(router, backend)
    _add_models(router, backend)
    return router


def _add_edits(router: APIRouter, backend: Backend) -> None:
    admission = JobAdmission(backend)

    @router.post(
        "/images/edits",
        response_model=OpenAIImages,
        responses={200: _EDIT_RESPONSE, **_CANCELLED},
        openapi_extra={"requestBody": _EDIT_REQUEST},
    )
    async def edit_images(request: Request, repeat_key: RepeatKeyHeader = None) -> Response:
        """Edit pictures: several variants or views of one upload, whole or as a stream."""
        return await _edit(backend, admission, request, repeat_key)


async def _edit(backend: Backend, admission: JobAdmission, request: Request, repeat_key: str | None) -> Response:
    """The pictures, or a stream of events, later. When that is cancelled because the client disconnected, so are the
    edits, unless they are a job.

    Raises:
        ServiceError: the request was rejected, or, later, an edit failed before anything was sent.
    """
    settings = backend.settings
    if repeat_key is not None:
        await admission.refuse_early(repeat_key)
    # FastAPI keeps its own request object, and that would keep the body.
    body = await read_body(Request(request.scope, request.receive), backend.bodies, settings.limits.max_body_bytes)
    draw: Draw
    with ExitStack() as held:
        if repeat_key is None:
            parsed = parse_body(body, settings, backend.loras)
            deadline = Deadline.after(parsed.timeout_s)
            held.enter_context(backend.edit_places.take(CLIENT.get(), len(parsed.edits)))
            prepared = await deadline.bound(backend.prepare(request.state.request_id, parsed))
            edits, job_id, draw = prepared.edits, None, drawing(backend, prepared, deadline)
        else:
            job, deadline = await find_or_submit(backend, admission, repeat_key, body)
            edits, job_id = job.edits, job.id
            draw = partial(draw_as_job, backend.jobs, backend.job_bodies, job_id, deadline)
        look = _look(edits[0], body.edit.quality)
        if body.edit.stream:
            events = server_sent(draw, look, alone=len(edits) == 1)
            return LateResponse(partial(EventStream.begun, events, held.pop_all()))
        if job_id is None:
            return LateResponse(partial(_whole, draw, look, held.pop_all()))
        return LateResponse(partial(_whole_of_job, backend, job_id, deadline, look))


async def _whole(draw: Draw, look: OpenAILook, held: ExitStack) -> Response:
    with held:
        drawn = await draw(lambda _: None)
    # Off the event loop, since encoding pictures in base64 takes time.
    return _json(await asyncio.to_thread(_dump, look, drawn))


async def _whole_of_job(backend: Backend, job_id: str, deadline: Deadline, look: OpenAILook) -> Response:
    await wait_for_end(backend.jobs, job_id, deadline)
    form = f"openai {look.model_dump_json()}"
    return _json(await backend.job_bodies.body(job_id, form, lambda job: _dump(look, result_of(job))))


def _look(edit: EditRequest, quality: str | None) -> OpenAILook:
    """All edits of a request have one size, since they share their pictures."""
    size = edit.size.final
    return OpenAILook(
        output_format=edit.output.format, size=f"{size.width}x{size.height}", quality=default(quality, "auto")
    )


def _dump(look: OpenAILook, drawn: DrawResult) -> bytes:
    return images(drawn.outcomes, drawn.at, look).model_dump_json().encode()


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _add_models(router: APIRouter, backend: Backend) -> None:
    created = int(time.time())

    def models() -> dict[str, OpenAIModel]:
        served = backend.settings.served_model_names
        adapters = [lora.name for lora in backend.loras if not lora.is_fused]
        parents = {**dict.fromkeys(served), **dict.fromkeys(adapters, served[0])}
        return {name: OpenAIModel(id=name, created=created, parent=parent) for name, parent in parents.items()}

    @router.get("/models", response_model_exclude_none=True)
    async def list_models() -> OpenAIModels:
        """The names by which clients may call the model, alone or with one of its adapters."""
        return OpenAIModels(data=list(models().values()))

    @router.get("/models/{model:path}", response_model_exclude_none=True)
    async def retrieve_model(model: str) -> OpenAIModel:
        """One of them."""
        known = models()
        if model not in known:
            raise ModelNotFound(f"There is no model {echo(model)} here; GET /v1/models lists what there is.", "model")
        return known[model]

    @router.get("/adapters")
    async def list_adapters() -> OpenAIAdapters:
        """The LoRA adapters of the model, and which of them a request may name."""
        return OpenAIAdapters(data=[OpenAIAdapter.of(lora) for lora in backend.loras])
