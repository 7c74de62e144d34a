"""The application with a leak in its Jobs deployment, to show that the soak would notice one."""

from collections.abc import Sequence

from ray.serve import Application

from serve_app import app
from serve_app.config import AppSettings
from serve_app.edits.job import Job, JobSpec
from serve_app.edits.request import Pictures
from serve_app.ingress.runpod import answers as runpod_answers
from serve_app.jobs.service import JobService

LEAK_BYTES = 8 * 2**10
_hoard: list[bytes] = []
_sound = JobService.submit


async def _leaking(self: JobService, spec: JobSpec, pictures: Sequence[Pictures]) -> str:
    _hoard.append(bytes([1]) * LEAK_BYTES)
    return await _sound(self, spec, pictures)


def webhook_body(spec: JobSpec, job: Job) -> bytes:
    """The sound one. A replica that is given it imports this module, and with it the leak."""
    return runpod_answers.webhook_body(spec, job)


JobService.submit = _leaking  # type: ignore[method-assign]


def build(args: AppSettings) -> Application:
    vars(app)["webhook_body"] = webhook_body
    return app.build(args)
