"""RunPod's dialect on the wire: requests, envelopes, errors, as RunPod's own endpoints shape them."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_app.edits.request import EditOutcome
from serve_app.ingress.fields import Flag, Number, Text, TextOrTexts, Texts, Whole


class RunPodInput(BaseModel):
    """What to edit and how. Absent and null mean the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: Text = Field(None, description="The picture: PNG, JPEG or WebP in base64, a data-URL prefix is allowed.")
    images: Texts = Field(
        None,
        description="Several pictures. With a list of prompts: one edit each. With one prompt: one edit with up to "
        "four references. Beside `image`, that one comes first.",
    )
    prompt: TextOrTexts = Field(
        None, description="The instruction, or a list of as many instructions as there are pictures."
    )
    rewrite_prompt: Flag = Field(
        None, description="Let the rewriter turn a vague instruction into a precise one. Default false."
    )
    azimuth: Number = Field(None, description="Camera's horizontal angle in degrees; snaps to multiples of 45.")
    elevation: Number = Field(None, description="Camera's vertical angle in degrees; snaps to -30, 0, 30, 60.")
    distance: Number = Field(None, description="Camera's distance; snaps to 0.6, 1.0, 1.4, 1.8.")
    seed: Whole = Field(None, description="Same seed, same picture. Default 42.")
    num_inference_steps: Whole = Field(None, description="Default 4; 4 to 8 suit the Lightning adapter.")
    guidance_scale: Number = Field(None, description="Classifier-free guidance, active above 1. Default 1.0.")
    true_cfg_scale: Number = Field(None, description="The same knob by the model's own name; it wins.")
    negative_prompt: Text = Field(None, description="What guidance steers away from. Default one space.")
    width: Whole = Field(None, description="Width in pixels; alone it keeps the aspect. Default: about 1 megapixel.")
    height: Whole = Field(None, description="Height in pixels; alone it keeps the aspect.")
    output_format: Text = Field(None, description="png (default), jpeg or webp.")
    output_quality: Whole = Field(None, description="1 to 100, for jpeg and webp. Default 95.")


class RunPodRequest(BaseModel):
    """A job. RunPod's `webhook`, `policy` and `s3Config` are refused rather than ignored."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"input": {"image": "iVBORw0KGgo…", "prompt": "Make it sunset", "azimuth": 45, "elevation": 30}}
            ]
        },
    )

    input: RunPodInput


class RunPodOutput(BaseModel):
    images: list[str] = Field(description="Encoded pictures in base64, one for each edit, in order.")
    seed: int
    final_prompts: list[str] = Field(description="The prompts that ran, camera words included.")
    rewritten_log: list[dict[str, str | None]] = Field(
        description="When rewriting was asked for: each prompt, what it became, or why it stayed."
    )


class RunPodEnvelope(BaseModel):
    """A job's end. Times in milliseconds."""

    id: str
    status: Literal["COMPLETED", "FAILED"]
    delayTime: int  # noqa: N815 - RunPod's names
    executionTime: int  # noqa: N815
    workerId: str  # noqa: N815
    output: RunPodOutput | None = None
    error: str | None = None


class RunPodError(BaseModel):
    error: str


class RunPodHealth(BaseModel):
    jobs: dict[str, int]
    workers: dict[str, int]


def completed(
    job_id: str, seed: int, outcomes: Sequence[EditOutcome], images: list[str], elapsed_s: float
) -> RunPodEnvelope:
    """The envelope of a finished job; `images` are the outcomes' pictures in base64."""
    delay_s = min(outcome.result.timings.queue_s for outcome in outcomes)
    return RunPodEnvelope(
        id=job_id,
        status="COMPLETED",
        delayTime=_milliseconds(delay_s),
        executionTime=_milliseconds(elapsed_s - delay_s),
        workerId=outcomes[0].result.worker_id,
        output=RunPodOutput(
            images=images,
            seed=seed,
            final_prompts=[outcome.final_prompt for outcome in outcomes],
            rewritten_log=[entry for outcome in outcomes for entry in _log(outcome)],
        ),
    )


def failed(job_id: str, error: str, elapsed_s: float) -> RunPodEnvelope:
    """The envelope of a job that was accepted and could not be done."""
    return RunPodEnvelope(
        id=job_id, status="FAILED", error=error, delayTime=0, executionTime=_milliseconds(elapsed_s), workerId=""
    )


def _log(outcome: EditOutcome) -> list[dict[str, str | None]]:
    if outcome.rewrite is None:
        return []
    return [
        {"prompt": outcome.prompt, "rewritten": outcome.rewrite.prompt, "reason": outcome.rewrite.reason},
    ]


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))
