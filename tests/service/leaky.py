"""The application with a memory leak in its Jobs deployment, to show that the soak test detects one."""

from collections.abc import Sequence

from ray.serve import Application

from serve_app import app
from serve_app.config import AppSettings
from serve_app.edits.job import Job, JobSpec
from serve_app.edits.request import Pictures
from serve_app.ingress.runpod import answers as runpod_answers
from serve_app.jobs.service import JobService

LEAK_BYTES = 8 * 2**10
_leaked: list[bytes] = []
_submit = JobService.submit


async def _leaking(self: JobService, spec: JobSpec, pictures: Sequence[Pictures]) -> str:
    _leaked.append(bytes([1]) * LEAK_BYTES)
    return await _submit(self, spec, pictures)


def webhook_body(spec: JobSpec, job: Job) -> bytes:
    """Calls the original. A replica that unpickles it imports this module, and with it the leak."""
    return runpod_answers.webhook_body(spec, job)


JobService.submit = _leaking  # type: ignore[method-assign]


def build(args: AppSettings) -> Application:
    vars(app)["webhook_body"] = webhook_body
    return app.build(args)
