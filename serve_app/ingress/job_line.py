"""The log line of a job that was taken. Serve puts the request id of its HTTP request beside it."""

from serve_app.edits.job import JobSpec


def describe(job_id: str, spec: JobSpec) -> str:
    """`job_id` is another one than the spec's where the request repeats one that came before."""
    size = spec.edits[0].size.final
    repeats = "" if job_id == spec.id else " repeated=true"
    return (
        f"job {job_id} taken: num_edits={len(spec.edits)} num_picture_sets={max(spec.pictures_of) + 1} "
        f"size={size.width}x{size.height} num_steps={spec.edits[0].sampling.num_inference_steps}{repeats}"
    )
