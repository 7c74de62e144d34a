"""RunPod's dialect on the wire, requests: jobs as RunPod's own endpoints take them."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from serve_app.ingress.fields import FORMATS, EditFields, Flag, Name, StrictModel, Text, TextOrTexts, Texts, Whole
from serve_app.ingress.validation import listed


class RunPodInput(EditFields):
    """What to edit and how. Absent and null mean the same."""

    image: Text = Field(None, description="The picture: PNG, JPEG or WebP in base64, a data-URL prefix is allowed.")
    images: Texts = Field(
        None,
        description="Several pictures. With a list of prompts: one edit each. With one prompt: one edit with up to "
        "four references. Beside `image`, that one comes first.",
    )
    prompt: TextOrTexts = Field(
        None, description="The instruction, or a list of as many instructions as there are pictures."
    )
    seed: Whole = Field(None, description="Same seed, same picture. Default 42.")
    width: Whole = Field(None, description="Width in pixels; alone it keeps the aspect. Default: about 1 megapixel.")
    height: Whole = Field(None, description="Height in pixels; alone it keeps the aspect.")
    output_format: Name = Field(None, description=f"{listed(FORMATS)}. Default png.")
    output_quality: Whole = Field(None, description="1 to 100, the quality of lossy formats. Default 95.")


class RunPodPolicy(StrictModel):
    """A job's time limits, in milliseconds, and its priority."""

    executionTimeout: Whole = Field(  # noqa: N815 - RunPod's names
        None, description="From the job's pick-up; after it the job is FAILED. Default 600000."
    )
    ttl: Whole = Field(None, description="From arrival to pick-up; after it the job is TIMED_OUT. Default a day.")
    lowPriority: Flag = Field(None, description="Let others go first, for a while.")  # noqa: N815


def _no_s3(value: object) -> None:
    if value is not None:
        raise PydanticCustomError("unsupported", "is not supported: pictures are answered in base64. Leave it out")


class RunPodRequest(StrictModel):
    """A job."""

    input: RunPodInput
    policy: RunPodPolicy | None = None
    webhook: Name = Field(None, description="A URL that is notified of the job's end; its origin must be allowed.")
    s3Config: Annotated[Any, BeforeValidator(_no_s3)] = Field(  # noqa: N815
        None, description="Refused: pictures are answered in base64."
    )
