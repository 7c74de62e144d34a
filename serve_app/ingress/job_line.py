"""The log line of an accepted job. Serve adds the request id of its HTTP request."""

from serve_app.edits.job import JobSpec
from serve_app.ingress.auth import KEY_NAME


def describe(job_id: str, spec: JobSpec) -> str:
    """`job_id` differs from the spec's if the request repeats an earlier one. The name of the API key, if it has one,
    is that of the current request."""
    size = spec.edits[0].size.final
    repeats = "" if job_id == spec.id else " repeated=true"
    key_name = KEY_NAME.get()
    key = f" key={key_name}" if key_name else ""
    return (
        f"job {job_id} taken: num_edits={len(spec.edits)} num_picture_sets={max(spec.pictures_of) + 1} "
        f"size={size.width}x{size.height} num_steps={spec.edits[0].sampling.num_inference_steps}{repeats}{key}"
    )
