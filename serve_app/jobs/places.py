"""Places in the queue of jobs: who holds them, and which client is refused."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from serve_app.config import JobSettings
from serve_app.edits.fairness import Places
from serve_app.errors import StoreFull
from serve_app.jobs.live import LiveJob

HOLD_S = 60.0
"""For how long a place is held for a job that is not submitted: its ingress may have died."""

UNRESERVED_PART = 4
"""An ingress replica may prepare so many jobs at once without a place: this part of those that are free."""

STORE_FULL_S = 1.0
"""For how long a store is assumed to be full for a client whose job it refused. How many bytes a job needs is known
only when its pictures are prepared."""


class JobPlaces:
    """A job takes one place from its reservation to its end. Lives on one event loop.

    Args:
        open_jobs: the enlisted jobs that have not ended.
        clock: seconds.
    """

    def __init__(
        self,
        settings: JobSettings,
        open_jobs: Callable[[], Iterable[LiveJob]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = Places(
            settings.max_active_jobs + settings.max_queued_jobs,
            settings.max_places_per_key,
            what="jobs",
            setting="jobs.max_places_per_key",
            clock=clock,
        )
        self._open_jobs = open_jobs
        self._clock = clock
        self._held: dict[str, tuple[str, float]] = {}
        self._taking: Counter[tuple[str, str]] = Counter()
        self._store_full: dict[str, tuple[float, str]] = {}

    def hold(self, job_id: str, client: str) -> int:
        """Hold a place for a job, for `HOLD_S` at most. Returns what `JobsPort.reserve` does.

        Raises:
            Overloaded: the queue is full, or, as KeyPlacesTaken, the client's part of it.
            StoreFull: the store refused a job of this client less than `STORE_FULL_S` ago.
        """
        if client in self._store_full and self._clock() < self._store_full[client][0]:
            raise StoreFull(self._store_full[client][1])
        taken = self._taken()
        if job_id not in self._held:
            self._places.require(client, taken)
            taken[client] += 1
        self._held[job_id] = client, self._clock() + HOLD_S
        return self._places.num_free(client, taken) // UNRESERVED_PART

    def release(self, job_id: str) -> None:
        """Give up a held place, if there is one."""
        self._held.pop(job_id, None)

    @contextmanager
    def take(self, job_id: str, client: str) -> Iterator[None]:
        """Take a place, that which is held for the job or a new one, while it is stored and enlisted. A StoreFull that
        is raised meanwhile is remembered.

        Raises:
            Overloaded: no place is held, and the queue is full, or the client's part of it.
        """
        if job_id not in self._held:
            self._places.require(client, self._taken())
        self.release(job_id)
        self._taking[job_id, client] += 1
        try:
            yield
        except StoreFull as problem:
            self._store_full[client] = self._clock() + STORE_FULL_S, problem.message
            raise
        finally:
            self._taking[job_id, client] -= 1
            self._taking += Counter()  # removes zero counts

    def is_taking(self, job_id: str) -> bool:
        """Whether the job is being stored or enlisted."""
        return any(job_id == other for other, _ in self._taking)

    def _taken(self) -> Counter[str]:
        now = self._clock()
        self._held = {job_id: held for job_id, held in self._held.items() if held[1] > now}
        taken = Counter(job.client for job in self._open_jobs())
        taken.update(client for client, _ in self._held.values())
        taken.update(client for _, client in self._taking.elements())
        return taken
