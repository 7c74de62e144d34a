"""Sends an edit over HTTP as any RunPod client does."""

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx2

from serve_app.errors import EditFailed, ServiceUnavailable
from serve_app.ingress.runpod.answers import RunPodEnvelope

_WAIT_MS = 300_000
_TIMEOUT_S = _WAIT_MS / 1000 + 10


@dataclass(frozen=True)
class Answer:
    """The response: picture files, the prompts that ran, the rewriter's log, and the seconds it took."""

    pictures: tuple[bytes, ...]
    final_prompts: tuple[str, ...]
    rewrites: tuple[Mapping[str, str | None], ...]
    elapsed_s: float


def send(url: str, payload: Mapping[str, object]) -> Answer:
    """Post the payload to `/runsync` and wait for the job's end.

    Raises:
        EditFailed: the server rejected the job, or it failed; contains the server's message.
        ServiceUnavailable: there was no response.
    """
    began = time.monotonic()
    try:
        # trust_env: a proxy configured for the internet cannot reach this machine.
        response = httpx2.post(f"{url}/runsync?wait={_WAIT_MS}", json=payload, timeout=_TIMEOUT_S, trust_env=False)
    except httpx2.HTTPError as problem:
        raise ServiceUnavailable(f"The server at {url} gave no answer: {problem!r}") from problem
    return read_answer(response, time.monotonic() - began)


def read_answer(response: httpx2.Response, elapsed_s: float) -> Answer:
    """Parse a response.

    Raises:
        EditFailed: the response is not that of a completed job.
    """
    if response.status_code != httpx2.codes.OK:
        raise EditFailed(f"The server answered {response.status_code}: {response.text}")
    envelope = RunPodEnvelope.model_validate_json(response.content)
    if envelope.output is None:
        raise EditFailed(f"The job ended as {envelope.status}: {envelope.error}")
    return Answer(
        pictures=tuple(base64.b64decode(picture) for picture in envelope.output.images),
        final_prompts=tuple(envelope.output.final_prompts),
        rewrites=tuple(envelope.output.rewritten_log),
        elapsed_s=elapsed_s,
    )
