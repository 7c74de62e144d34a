"""OpenAI's dialect on the wire, what a stream says: previews, finished pictures, an error at its end."""

import time
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field

from serve_app.edits.request import EditOutcome
from serve_app.ingress.openai.answers import OpenAIDrawn, OpenAILook, OpenAIProblem, OpenAIUsage, base64_of, drawn


@dataclass(frozen=True)
class Preview:
    """How the picture at `index` will probably end, encoded; the `number`-th such preview, from 0 on."""

    index: int
    number: int
    data: bytes


@dataclass(frozen=True)
class Finished:
    """The picture at `index` is done."""

    index: int
    outcome: EditOutcome


Event = Preview | Finished


ImageIndex = Field(
    None,
    exclude_if=lambda index: index is None,
    description="Only where several pictures were asked for: the place of this one among them.",
)


class OpenAIPartialEvent(OpenAILook):
    """How a picture will probably end."""

    type: Literal["image_edit.partial_image"] = "image_edit.partial_image"
    b64_json: str
    created_at: int
    partial_image_index: int
    image_index: int | None = ImageIndex


class OpenAICompletedEvent(OpenAILook, OpenAIDrawn):
    """A picture that is done. There is one such event for each picture, sent when it is done."""

    type: Literal["image_edit.completed"] = "image_edit.completed"
    created_at: int
    usage: OpenAIUsage
    image_index: int | None = ImageIndex


class OpenAIStreamError(BaseModel):
    """The last event of a stream that broke."""

    error: OpenAIProblem


def event_of(told: Event, look: OpenAILook, *, alone: bool) -> OpenAIPartialEvent | OpenAICompletedEvent:
    """What a client is told; `alone`: no other picture was asked for."""
    index = None if alone else told.index
    if isinstance(told, Preview):
        return OpenAIPartialEvent(
            **look.model_dump(),
            b64_json=base64_of(told.data),
            created_at=int(time.time()),
            partial_image_index=told.number,
            image_index=index,
        )
    return OpenAICompletedEvent(
        **look.model_dump(),
        **drawn(told.outcome).model_dump(),
        created_at=int(time.time()),
        usage=OpenAIUsage.of([told.outcome.result.tokens]),
        image_index=index,
    )
