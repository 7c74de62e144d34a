"""The queue of waiting jobs: round-robin by client, each client's jobs in their order."""

from collections.abc import Callable, Iterator

from serve_app.jobs.live import LiveJob


class FairQueue:
    """The next job is one of the client that was served least recently, so a client that queues many jobs delays the
    others by one job each. Low-priority jobs yield to all others until they are as old as `LiveJob.rank` says.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._jobs: list[LiveJob] = []
        # Kept for clients without waiting jobs: one that always has a single job must not come first each time. There
        # are as many as API keys.
        self._served_at: dict[str, int] = {}
        self._num_served = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[LiveJob]:
        return iter(self._jobs)

    def add(self, job: LiveJob) -> None:
        self._jobs.append(job)

    def discard(self, job: LiveJob) -> None:
        if job in self._jobs:
            self._jobs.remove(job)

    def pop(self) -> LiveJob:
        """Remove and return the next job.

        Raises:
            ValueError: no job waits.
        """
        now = self._clock()
        job = min(self._jobs, key=lambda job: self._order(job, now))
        self._jobs.remove(job)
        self._num_served += 1
        self._served_at[job.spec.client] = self._num_served
        return job

    def _order(self, job: LiveJob, now: float) -> tuple[bool, int, float]:
        yields = job.is_low_priority and job.rank > now
        return yields, self._served_at.get(job.spec.client, 0), job.rank
