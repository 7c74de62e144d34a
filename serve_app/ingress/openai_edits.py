"""An OpenAI request from its body to its answer, whole or streamed."""

import asyncio
from functools import partial
from typing import Generic, TypeVar

from fastapi import Request, Response

from serve_app.ingress.asked import default
from serve_app.ingress.backend import Backend
from serve_app.ingress.openai_answers import OpenAILook, images
from serve_app.ingress.openai_body import Posted, read_posted
from serve_app.ingress.openai_drawing import Draw, Drawn, draw_now
from serve_app.ingress.openai_input import parse_posted
from serve_app.ingress.openai_jobs import draw_as_job, new_job_id, submit
from serve_app.ingress.openai_stream import EventStream, server_sent
from serve_app.ingress.prepare import Prepared

P = TypeVar("P")


class OpenAIEdits(Generic[P]):
    """What stands behind `POST /v1/images/edits`."""

    def __init__(self, backend: Backend[P]) -> None:
        self._backend = backend

    async def answer(self, request: Request, repeat_key: str | None) -> Response:
        """The pictures, or a stream that tells of them. Where this is cancelled for the client went away, its edits
        are, unless they are a job.

        Raises:
            ServiceError: the request was refused, or an edit failed before anything was told.
        """
        posted = await read_posted(request, self._backend.settings.limits)
        request_id = request.state.request_id if repeat_key is None else new_job_id()
        prepared, draw = await self._begin(request_id, repeat_key, posted)
        look = _look(prepared, posted.edit.quality)
        if posted.edit.stream:
            return await EventStream.begun(server_sent(draw, look, alone=len(prepared.edits) == 1))
        return await asyncio.to_thread(_json, await draw(lambda _: None), look)

    async def _begin(self, request_id: str, repeat_key: str | None, posted: Posted) -> tuple[Prepared, Draw]:
        asked = parse_posted(posted, self._backend.settings)
        prepared = await self._backend.prepare(request_id, asked)
        if repeat_key is None:
            return prepared, partial(draw_now, self._backend, prepared)
        job_id = await submit(self._backend, request_id, repeat_key, posted, asked, prepared)
        return prepared, partial(draw_as_job, self._backend.jobs, job_id)


def _look(prepared: Prepared, quality: str | None) -> OpenAILook:
    """One upload gives all edits of a request one size."""
    edit = prepared.edits[0]
    size = edit.size.final
    return OpenAILook(
        output_format=edit.output.format, size=f"{size.width}x{size.height}", quality=default(quality, "auto")
    )


def _json(drawn: Drawn, look: OpenAILook) -> Response:
    """Rendered off the event loop: pictures in base64 take their time."""
    return Response(images(drawn.outcomes, drawn.at, look).model_dump_json(), media_type="application/json")
