"""RunPod's dialect on the wire, responses: envelopes, streams, counts and errors. Times in milliseconds."""

import json
from typing import Literal

from pydantic import BaseModel, Field

from serve_app.edits.images import encode_base64
from serve_app.edits.job import Job, JobNews, JobRecord, JobSpec, JobState
from serve_app.edits.request import EditOutcome, EditTimings, Progress

PUBLIC_FIELDS = {"size", "enable_base64_output", "enable_safety_checker", "enable_sync_mode"}
"""Fields of RunPod's public endpoint for this model that its serverless endpoints' documents do not have."""


class RunPodOutput(BaseModel):
    images: list[str] = Field(description="Encoded pictures in base64, one for each edit, in order.")
    seed: int
    final_prompts: list[str] = Field(description="The prompts that ran, with the camera's words.")
    image_url: str | None = Field(
        None,
        description="The first picture as a data URL, if the request has a field of RunPod's public endpoint for this "
        "model: size or enable_…. Its clients read the picture here.",
    )
    rewritten_log: list[dict[str, str | None]] = Field(
        description="If rewriting was requested: each prompt, the rewritten one, or why it was not rewritten."
    )


class RunPodEnvelope(BaseModel):
    """A job's current state: `output` when it is COMPLETED, `error` when it is FAILED or TIMED_OUT."""

    id: str
    status: JobState
    delayTime: int | None = Field(None, description="From its arrival to its pick-up.")  # noqa: N815 - RunPod's names
    executionTime: int | None = Field(None, description="From its pick-up to its end.")  # noqa: N815
    workerId: str | None = None  # noqa: N815
    output: RunPodOutput | None = None
    error: str | None = None


class RunPodAccepted(BaseModel):
    id: str
    status: JobState


class RunPodPurged(BaseModel):
    removed: int = Field(description="Waiting jobs that are cancelled now.")
    status: Literal["completed"] = "completed"


class RunPodPicture(BaseModel):
    """A finished picture, base64; `index` is its place in the job's output."""

    type: Literal["image"] = "image"
    index: int
    image: str
    seed: int
    final_prompt: str
    timings: EditTimings = Field(description="Of the picture in the engine.")


class RunPodStep(BaseModel):
    """How many steps of the picture at `index` are done. `paused`: other edits go first for now. `preview`: the
    probable result in base64, if `partial_images` requests some and there is a new one."""

    type: Literal["progress"] = "progress"
    index: int
    step: int
    num_steps: int
    paused: bool = False
    preview: str | None = None


class RunPodStreamItem(BaseModel):
    output: RunPodPicture | RunPodStep = Field(discriminator="type")


class RunPodStream(BaseModel):
    """What is new since the last call."""

    status: JobState
    stream: list[RunPodStreamItem]


class RunPodError(BaseModel):
    error: str


class RunPodHealth(BaseModel):
    jobs: dict[str, int]
    workers: dict[str, int]


def envelope(job: Job) -> RunPodEnvelope:
    """The envelope of a job, its pictures in base64."""
    plain = plain_envelope(job.id, job.record)
    if not job.outcomes:
        return plain
    worker_id, output = job.outcomes[0].result.worker_id, _output(job)
    return plain.model_copy(update={"workerId": worker_id, "output": output})


def plain_envelope(job_id: str, record: JobRecord) -> RunPodEnvelope:
    """The envelope of a job that is not COMPLETED."""
    return RunPodEnvelope(
        id=job_id,
        status=record.state,
        delayTime=_milliseconds(record.created_at, record.started_at),
        executionTime=_milliseconds(record.started_at, record.ended_at),
        error=record.error,
    )


def stream(news: JobNews) -> RunPodStream:
    """What is new in a job, pictures first."""
    pictures = [RunPodStreamItem(output=_picture(*each)) for each in sorted(news.outcomes.items())]
    steps = [RunPodStreamItem(output=_step(*each)) for each in sorted(news.progress.items())]
    return RunPodStream(status=news.state, stream=[*pictures, *steps])


def webhook_body(spec: JobSpec, job: Job) -> bytes:
    """What a webhook receives: the envelope, the input without its pictures, and the webhook itself."""
    body = envelope(job).model_dump(mode="json", exclude_none=True)
    return json.dumps({**body, "input": spec.input_without_pictures, "webhook": spec.webhook}).encode()


def _output(job: Job) -> RunPodOutput:
    images = [encode_base64(outcome.result.data) for outcome in job.outcomes]
    is_public = PUBLIC_FIELDS & (job.input_without_pictures or {}).keys()
    return RunPodOutput(
        images=images,
        seed=job.seed,
        final_prompts=[outcome.final_prompt for outcome in job.outcomes],
        image_url=f"data:{job.outcomes[0].result.media_type};base64,{images[0]}" if is_public else None,
        rewritten_log=[entry for outcome in job.outcomes for entry in _log(outcome)],
    )


def _log(outcome: EditOutcome) -> list[dict[str, str | None]]:
    if outcome.rewrite is None:
        return []
    return [{"prompt": outcome.prompt, "rewritten": outcome.rewrite.prompt, "reason": outcome.rewrite.reason}]


def _picture(index: int, outcome: EditOutcome) -> RunPodPicture:
    return RunPodPicture(
        index=index,
        image=encode_base64(outcome.result.data),
        seed=outcome.seed,
        final_prompt=outcome.final_prompt,
        timings=outcome.result.timings,
    )


def _step(index: int, progress: Progress) -> RunPodStep:
    preview = None if progress.preview is None else encode_base64(progress.preview)
    return RunPodStep(
        index=index, step=progress.step, num_steps=progress.num_steps, paused=progress.is_paused, preview=preview
    )


def _milliseconds(since_s: float | None, until_s: float | None) -> int | None:
    return None if since_s is None or until_s is None else max(0, round((until_s - since_s) * 1000))


def error_body(status: int, code: str, message: str, field: str | None) -> RunPodError:
    """The body of an error response: RunPod's clients read only a message."""
    return RunPodError(error=message)
