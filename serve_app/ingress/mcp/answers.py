"""MCP on the wire, results: pictures with what made them, adapters, and errors."""

import json
from collections.abc import Sequence
from typing import Any, Literal, Self

from mcp_types import INTERNAL_ERROR, INVALID_REQUEST, CallToolResult, ImageContent, TextContent
from pydantic import BaseModel, Field

from serve_app.config import Apply, LoraSettings
from serve_app.edits.camera import CameraPose
from serve_app.edits.images import encode_base64
from serve_app.edits.request import EditOutcome, EditRequest
from serve_app.errors import ServiceError


class McpPose(BaseModel):
    """Where the camera stands, after snapping to the poses that the model knows."""

    azimuth: int
    elevation: int
    distance: float

    @classmethod
    def of(cls, pose: CameraPose | None) -> Self | None:
        return None if pose is None else cls(**vars(pose))


class McpPicture(BaseModel):
    """What made a picture."""

    seed: int
    final_prompt: str = Field(description="The prompt that ran: rewritten if requested, with the camera's words.")
    camera: McpPose | None
    rewrite_problem: str | None = Field(description="Why a requested rewrite failed; null: it did not.")


class McpPictures(BaseModel):
    """One entry for each image of the result, in the same order."""

    pictures: list[McpPicture]
    size: str = Field(description="WIDTHxHEIGHT in pixels.")
    output_format: str


class McpAdapter(BaseModel):
    name: str
    apply: Apply = Field(
        description="fused: part of the model, and `loras` cannot name it; camera: for edits with a camera pose; "
        "request: for edits whose `loras` name it."
    )
    weight: float = Field(description="Its strength, in edits that name no other.")
    min_weight: float
    max_weight: float
    trigger_words: list[str] = Field(description="What a prompt must hold for the adapter to act.")


class McpAdapters(BaseModel):
    """The adapters of the model."""

    adapters: list[McpAdapter]


class McpErrorData(BaseModel):
    status: int
    code: str
    field: str | None = Field(description="The field at fault.")


class McpProblem(BaseModel):
    code: int
    message: str
    data: McpErrorData


class McpError(BaseModel):
    """The body of an HTTP error."""

    jsonrpc: Literal["2.0"] = "2.0"
    id: None = None
    error: McpProblem


def error_body(status: int, code: str, message: str, field: str | None) -> McpError:
    """The body of an error response: JSON-RPC's shape, for a request that could not be read or was not admitted."""
    kind = INVALID_REQUEST if status < 500 else INTERNAL_ERROR
    return McpError(
        error=McpProblem(code=kind, message=message, data=McpErrorData(status=status, code=code, field=field))
    )


def pictures_result(edits: Sequence[EditRequest], outcomes: Sequence[EditOutcome]) -> CallToolResult:
    """The pictures as image content, and what made them, as structured content and as text."""
    images = [ImageContent(data=encode_base64(each.result.data), mime_type=each.result.media_type) for each in outcomes]
    size = edits[0].size.final
    described = McpPictures(
        pictures=[
            McpPicture(
                seed=outcome.seed,
                final_prompt=outcome.final_prompt,
                camera=McpPose.of(edit.camera),
                rewrite_problem=None if outcome.rewrite is None else outcome.rewrite.reason,
            )
            for edit, outcome in zip(edits, outcomes, strict=True)
        ],
        size=f"{size.width}x{size.height}",
        output_format=edits[0].output.format,
    )
    return _result(images, described)


def adapters_result(loras: Sequence[LoraSettings]) -> CallToolResult:
    shown = [McpAdapter(**lora.model_dump(include=set(McpAdapter.model_fields))) for lora in loras]
    return _result([], McpAdapters(adapters=shown))


def error_result(problem: ServiceError, retry_after_s: int | None) -> CallToolResult:
    """An error that the model behind the client can read and act on.

    Args:
        retry_after_s: None: trying again does not help.
    """
    again = "" if retry_after_s is None else f" Try again in {retry_after_s} s."
    data = McpErrorData(status=problem.status, code=problem.code, field=problem.field)
    # Not as structured content, which must match the tool's output schema.
    return CallToolResult(
        content=[TextContent(text=f"{problem}{again}")],
        is_error=True,
        _meta={"qwen-camera-edit/error": data.model_dump()},
    )


def _result(images: list[ImageContent], described: BaseModel) -> CallToolResult:
    structured: dict[str, Any] = described.model_dump()
    # Clients that know no structured content read the text.
    text = TextContent(text=json.dumps(structured, ensure_ascii=False))
    return CallToolResult(content=[*images, text], structured_content=structured)
