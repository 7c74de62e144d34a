"""Jobs and their webhooks as Prometheus metrics, through Ray's exporter."""

from collections.abc import Mapping

from ray.util.metrics import Gauge

from serve_app.edits.job import JobCounts, JobState
from serve_app.serving.metrics import Totals


class JobMetrics:
    """Copies this replica's counts at each health check."""

    def __init__(self) -> None:
        self._jobs = Gauge("camera_edit_jobs", "Jobs that wait or run now, by state.", ("state",))
        self._ends = Totals("camera_edit_jobs_ended", "Jobs by the state in which they ended.", ("state",))
        self._retried = Totals("camera_edit_jobs_retried", "Jobs that were queued again after an end.")
        self._webhooks = Totals("camera_edit_webhooks", "Webhook notifications: taken or refused.", ("outcome",))

    def update(self, counts: JobCounts, ends: Mapping[JobState, int], webhooks: Mapping[str, int]) -> None:
        """Both mappings count since the replica's start."""
        self._jobs.set(counts.in_queue, {"state": JobState.IN_QUEUE.value})
        self._jobs.set(counts.in_progress, {"state": JobState.IN_PROGRESS.value})
        self._retried.set(counts.retried)
        for state, number in ends.items():
            self._ends.set(number, {"state": state.value})
        for outcome, number in webhooks.items():
            self._webhooks.set(number, {"outcome": outcome})
