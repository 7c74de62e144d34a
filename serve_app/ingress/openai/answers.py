"""OpenAI's dialect on the wire, what goes out: pictures, models and errors."""

import base64
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, Field

from serve_app.edits.request import EditOutcome, TokenCounts
from serve_app.errors import ServiceError


class OpenAIProblem(BaseModel):
    message: str
    type: str
    param: str | None = Field(description="The field at fault.")
    code: str | None

    @classmethod
    def made(cls, status: int, code: str, message: str, field: str | None) -> Self:
        kind = "invalid_request_error" if status < 500 else "server_error"
        return cls(message=message, type=kind, param=field, code=code)

    @classmethod
    def of(cls, problem: ServiceError) -> Self:
        return cls.made(problem.status, problem.code, problem.message, problem.field)


class OpenAIError(BaseModel):
    """The message twice: `detail` where vLLM-Omni's clients look for it, `error` where OpenAI's do."""

    detail: str
    error: OpenAIProblem


class OpenAILook(BaseModel):
    """What all pictures of one answer have in common."""

    output_format: Literal["png", "jpeg", "webp"]
    size: str = Field(description="WIDTHxHEIGHT in pixels.")
    background: Literal["opaque"] = "opaque"
    quality: str = Field(description="As asked for, or auto.")


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
    """A finished picture. `seed` and `rewrite_problem` are this server's own."""

    b64_json: str
    revised_prompt: str = Field(description="The prompt that ran: rewritten where that was asked for, camera words.")
    seed: int
    rewrite_problem: str | None = Field(
        None,
        exclude_if=lambda problem: problem is None,
        description="Only where rewriting was asked for and failed: why the prompt stayed.",
    )


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


class OpenAIModels(BaseModel):
    object: Literal["list"] = "list"
    data: list[OpenAIModel]


def images(outcomes: Sequence[EditOutcome], created: float, look: OpenAILook) -> OpenAIImages:
    """The answer with all pictures, in order."""
    return OpenAIImages(
        **look.model_dump(),
        created=int(created),
        data=[OpenAIPicture(**drawn(outcome).model_dump()) for outcome in outcomes],
        usage=OpenAIUsage.of([outcome.result.tokens for outcome in outcomes]),
    )


def drawn(outcome: EditOutcome) -> OpenAIDrawn:
    return OpenAIDrawn(
        b64_json=base64_of(outcome.result.data),
        revised_prompt=outcome.final_prompt,
        seed=outcome.seed,
        rewrite_problem=outcome.rewrite.reason if outcome.rewrite is not None else None,
    )


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def error_body(status: int, code: str, message: str, field: str | None) -> OpenAIError:
    """What a request that is rejected gets."""
    return OpenAIError(detail=message, error=OpenAIProblem.made(status, code, message, field))
