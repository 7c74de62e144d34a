"""An OpenAI request from its body to its answer, whole or streamed."""

import asyncio
from functools import partial

from fastapi import Request, Response

from serve_app.edits.deadline import Deadline
from serve_app.edits.request import EditRequest
from serve_app.ingress.asked import default
from serve_app.ingress.backend import Backend
from serve_app.ingress.openai.answers import OpenAILook, images
from serve_app.ingress.openai.body import read_posted
from serve_app.ingress.openai.drawing import Draw, DrawResult, draw_now
from serve_app.ingress.openai.jobs import draw_as_job, find_or_submit
from serve_app.ingress.openai.parse import parse_posted
from serve_app.ingress.openai.stream import EventStream, server_sent


class OpenAIEdits:
    """What stands behind `POST /v1/images/edits`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def answer(self, request: Request, repeat_key: str | None) -> Response:
        """The pictures, or a stream of events. Where this is cancelled because the client went away, its edits are,
        too, unless they are a job.

        Raises:
            ServiceError: the request was refused, or an edit failed before anything was sent.
        """
        settings = self._backend.settings
        posted = await read_posted(request, settings.limits)
        asked = parse_posted(posted, settings)
        deadline = Deadline.after(asked.timeout_s)
        draw: Draw
        if repeat_key is None:
            prepared = await deadline.bound(self._backend.prepare(request.state.request_id, asked))
            edits, draw = prepared.edits, partial(draw_now, self._backend, prepared, deadline)
        else:
            job = await find_or_submit(self._backend, repeat_key, posted, asked, deadline)
            edits, draw = job.edits, partial(draw_as_job, self._backend.jobs, job.id, deadline)
        look = _look(edits[0], posted.edit.quality)
        if posted.edit.stream:
            return await EventStream.begun(server_sent(draw, look, alone=len(edits) == 1))
        return await asyncio.to_thread(_json, await draw(lambda _: None), look)


def _look(edit: EditRequest, quality: str | None) -> OpenAILook:
    """One upload gives all edits of a request one size."""
    size = edit.size.final
    return OpenAILook(
        output_format=edit.output.format, size=f"{size.width}x{size.height}", quality=default(quality, "auto")
    )


def _json(drawn: DrawResult, look: OpenAILook) -> Response:
    """Rendered off the event loop: pictures in base64 take their time."""
    return Response(images(drawn.outcomes, drawn.at, look).model_dump_json(), media_type="application/json")
