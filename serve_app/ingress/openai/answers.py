"""OpenAI's dialect on the wire, responses: pictures, events of a stream, models and errors."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, WithJsonSchema

from serve_app.config import Apply, LoraSettings
from serve_app.edits.images import ENCODERS, encode_base64
from serve_app.edits.provenance import public_source
from serve_app.edits.request import EditOutcome, EditTimings, TokenCounts
from serve_app.errors import ServiceError


class OpenAIProblem(BaseModel):
    message: str
    type: str
    param: str | None = Field(description="The field at fault.")
    code: str | None

    @classmethod
    def make(cls, status: int, code: str, message: str, field: str | None) -> Self:
        kind = "invalid_request_error" if status < 500 else "server_error"
        return cls(message=message, type=kind, param=field, code=code)

    @classmethod
    def of(cls, problem: ServiceError) -> Self:
        return cls.make(problem.status, problem.code, problem.message, problem.field)


class OpenAIError(BaseModel):
    """The message twice: vLLM-Omni's clients read `detail`, OpenAI's `error`."""

    detail: str
    error: OpenAIProblem


class OpenAILook(BaseModel):
    """What all pictures of one response have in common."""

    output_format: Annotated[str, WithJsonSchema({"type": "string", "enum": list(ENCODERS)})]
    size: str = Field(description="WIDTHxHEIGHT in pixels.")
    background: Literal["opaque"] = "opaque"
    quality: str = Field(description="As requested, or auto.")


class OpenAIInputTokens(BaseModel):
    image_tokens: int
    text_tokens: int


class OpenAIUsage(BaseModel):
    """Tokens; those of pictures are 16 x 16 pixels each."""

    input_tokens: int
    input_tokens_details: OpenAIInputTokens
    output_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, counts: Sequence[TokenCounts]) -> Self:
        """The sum over several edits."""
        images, texts, output = (
            sum(getattr(each, name) for each in counts) for name in ("references", "prompt", "output")
        )
        return cls(
            input_tokens=images + texts,
            input_tokens_details=OpenAIInputTokens(image_tokens=images, text_tokens=texts),
            output_tokens=output,
            total_tokens=images + texts + output,
        )


class OpenAIDrawn(BaseModel):
    """A finished picture. `seed`, `rewrite_problem` and `timings` are extensions of this server."""

    b64_json: str
    revised_prompt: str = Field(description="The prompt that ran: rewritten if requested, with the camera's words.")
    seed: int
    rewrite_problem: str | None = Field(
        None,
        exclude_if=lambda problem: problem is None,
        description="Only if a requested rewrite failed: why the prompt was not rewritten.",
    )
    timings: EditTimings = Field(description="Of the picture in the engine.")


class OpenAIPicture(OpenAIDrawn):
    url: None = None


class OpenAIImages(OpenAILook):
    created: int
    data: list[OpenAIPicture]
    usage: OpenAIUsage


class OpenAIModel(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "qwen-camera-edit"
    parent: str | None = Field(default=None, description="Of an adapter: the model that it adapts.")


class OpenAIModels(BaseModel):
    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class OpenAIAdapter(BaseModel):
    name: str
    object: Literal["adapter"] = "adapter"
    apply: Apply = Field(
        description="fused: part of the model; camera: for edits with a camera pose; request: for edits that name it."
    )
    weight: float = Field(description="Its strength where a request names none.")
    min_weight: float
    max_weight: float
    trigger_words: list[str] = Field(description="What a prompt must hold for the adapter to act.")
    licence: str | None
    source: str = Field(description="A repository, or the name of a folder.")
    revision: str | None
    file: str

    @classmethod
    def of(cls, lora: LoraSettings) -> Self:
        source = public_source(lora.source)
        shown = lora.model_dump(include=set(cls.model_fields) - {"source"})
        return cls(**shown, source=source["path"], revision=source.get("revision"))


class OpenAIAdapters(BaseModel):
    object: Literal["list"] = "list"
    data: list[OpenAIAdapter]


def images(outcomes: Sequence[EditOutcome], created: float, look: OpenAILook) -> OpenAIImages:
    """The response with all pictures, in order."""
    return OpenAIImages(
        **look.model_dump(),
        created=int(created),
        data=[OpenAIPicture(**drawn(outcome).model_dump()) for outcome in outcomes],
        usage=OpenAIUsage.of([outcome.result.tokens for outcome in outcomes]),
    )


def drawn(outcome: EditOutcome) -> OpenAIDrawn:
    return OpenAIDrawn(
        b64_json=encode_base64(outcome.result.data),
        revised_prompt=outcome.final_prompt,
        seed=outcome.seed,
        rewrite_problem=outcome.rewrite.reason if outcome.rewrite is not None else None,
        timings=outcome.result.timings,
    )


def error_body(status: int, code: str, message: str, field: str | None) -> OpenAIError:
    """The body of an error response."""
    return OpenAIError(detail=message, error=OpenAIProblem.make(status, code, message, field))


@dataclass(frozen=True)
class Preview:
    """An encoded preview of the picture at `index`; `number` counts its previews, from 0 on."""

    index: int
    number: int
    data: bytes


@dataclass(frozen=True)
class Finished:
    """The picture at `index` is done."""

    index: int
    outcome: EditOutcome


Event = Preview | Finished

_IMAGE_INDEX = Field(
    None,
    exclude_if=lambda index: index is None,
    description="Only if several pictures were requested: the index of this one.",
)


class OpenAIPartialEvent(OpenAILook):
    """A preview of a picture."""

    type: Literal["image_edit.partial_image"] = "image_edit.partial_image"
    b64_json: str
    created_at: int
    partial_image_index: int
    image_index: int | None = _IMAGE_INDEX


class OpenAICompletedEvent(OpenAILook, OpenAIDrawn):
    """A finished picture. There is one such event for each picture, sent when it is done."""

    type: Literal["image_edit.completed"] = "image_edit.completed"
    created_at: int
    usage: OpenAIUsage
    image_index: int | None = _IMAGE_INDEX


class OpenAIStreamError(BaseModel):
    """The last event of a stream that failed."""

    error: OpenAIProblem


def event_of(event: Event, look: OpenAILook, *, alone: bool) -> OpenAIPartialEvent | OpenAICompletedEvent:
    """The event as sent to clients; `alone`: no other picture was requested."""
    index = None if alone else event.index
    if isinstance(event, Preview):
        return OpenAIPartialEvent(
            **look.model_dump(),
            b64_json=encode_base64(event.data),
            created_at=int(time.time()),
            partial_image_index=event.number,
            image_index=index,
        )
    return OpenAICompletedEvent(
        **look.model_dump(),
        **drawn(event.outcome).model_dump(),
        created_at=int(time.time()),
        usage=OpenAIUsage.of([event.outcome.result.tokens]),
        image_index=index,
    )
