"""RunPod's dialect on the wire, requests: jobs as RunPod's own endpoints take them."""

from typing import Annotated, Any

from pydantic import Field

from serve_app.errors import listed
from serve_app.ingress.parsing.fields import (
    FORMATS,
    EditFields,
    Flag,
    Hint,
    Name,
    StrictModel,
    Text,
    TextOrTexts,
    Texts,
    Whole,
    refused,
)


class RunPodInput(EditFields):
    """What to edit and how. Absent and null mean the same."""

    image: Text = Field(
        None,
        description="The picture: PNG, JPEG, WebP, GIF, HEIC or AVIF in base64, a data-URL prefix is allowed.",
    )
    images: Texts = Field(
        None,
        description="Several pictures. With a list of prompts: one edit each. With one prompt: one edit with up to "
        "four references. Beside `image`, that one comes first.",
    )
    prompt: TextOrTexts = Field(
        None, description="The instruction, or a list of as many instructions as there are pictures."
    )
    seed: Whole = Field(
        None, description="Same seed, same picture. Default 42; -1: a random one, which the output returns."
    )
    width: Whole = Field(None, description="Width in pixels; alone it keeps the aspect. Default: about 1 megapixel.")
    height: Whole = Field(None, description="Height in pixels; alone it keeps the aspect.")
    size: Name = Field(None, description="The same as WIDTHxHEIGHT or WIDTH*HEIGHT; auto: as without width and height.")
    output_format: Name = Field(None, description=f"{listed(FORMATS)}. Default png.")
    output_quality: Whole = Field(None, description="1 to 100, the quality of lossy formats. Default 95.")
    partial_images: Whole = Field(
        None, description="Previews of each picture in /stream, 0 to 3, as far as the steps allow. Default 0."
    )
    # Of RunPod's public endpoint for this model, as @runpod/ai-sdk-provider 1.4 calls it.
    enable_base64_output: Hint = None
    enable_safety_checker: Hint = None
    enable_sync_mode: Hint = None
    # Options of that provider itself, which it also sends.
    maxPollAttempts: Hint = None  # noqa: N815
    pollIntervalMillis: Hint = None  # noqa: N815


class RunPodPolicy(StrictModel):
    """A job's time limits, in milliseconds, and its priority."""

    executionTimeout: Whole = Field(  # noqa: N815 - RunPod's names
        None, description="From the job's pick-up; after it the job is FAILED. Default 600000."
    )
    ttl: Whole = Field(None, description="From arrival to pick-up; after it the job is TIMED_OUT. Default a day.")
    lowPriority: Flag = Field(None, description="Let others go first, for a while.")  # noqa: N815


class RunPodRequest(StrictModel):
    """A job."""

    input: RunPodInput
    policy: RunPodPolicy | None = None
    webhook: Name = Field(None, description="A URL that is notified of the job's end; its origin must be allowed.")
    s3Config: Annotated[  # noqa: N815
        Any, refused("is not supported: pictures are answered in base64. Leave it out")
    ] = Field(None, description="Refused: pictures are answered in base64.")
