"""Jobs: edits that outlive their connection. Records and port between the ingress, Jobs and the store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from serve_app.edits.request import EditOutcome, EditRequest, Pictures, Progress


class JobState(StrEnum):
    """RunPod's states."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def final(self) -> bool:
        return self not in (JobState.IN_QUEUE, JobState.IN_PROGRESS)

    @property
    def retryable(self) -> bool:
        return self in (JobState.FAILED, JobState.TIMED_OUT)

    @property
    def needs_pictures(self) -> bool:
        """Whether the job may be drawn, now or when it is retried."""
        return not self.final or self.retryable


@dataclass(frozen=True)
class Policy:
    """How long a job may run and wait, in seconds.

    Attributes:
        execution_timeout_s: from the pick-up to the end; then the job is FAILED.
        ttl_s: from the arrival to the pick-up; then the job is TIMED_OUT.
        timeout_s: from the request's arrival to the end; then the job is FAILED. None: no limit.
        spent_s: the part of `timeout_s` that had passed when the ingress submitted the job.
    """

    execution_timeout_s: float = 600.0
    ttl_s: float = 86400.0
    timeout_s: float | None = None
    spent_s: float = 0.0


EXECUTION_TIMEOUT = "executionTimeout exceeded"
"""The error of a job that ran longer than `Policy.execution_timeout_s`: RunPod's text."""


@dataclass(frozen=True)
class RepeatKey:
    """An Idempotency-Key, with the name of the API key that sent it, and the fingerprint of its request."""

    key: str
    fingerprint: str


@dataclass(frozen=True)
class JobSpec:
    """A job as requested; it never changes. The sets of prepared pictures are passed separately.

    Attributes:
        edits: one for each output picture.
        pictures_of: for each edit, the index of its set of pictures; views of one upload share a set.
        retention_s: how long the job is kept after its end, in seconds.
        webhook: the URL that is notified of the end.
        input_without_pictures: the request's `input`, which the webhook receives.
        client: the name of the API key that sent it, never the key; empty if no key is needed. Clients share the queue
            and the store's bytes.
    """

    id: str
    edits: tuple[EditRequest, ...]
    pictures_of: tuple[int, ...]
    seed: int
    policy: Policy
    retention_s: float
    webhook: str | None = None
    input_without_pictures: Mapping[str, Any] | None = None
    repeat_key: RepeatKey | None = None
    client: str = ""


@dataclass(frozen=True)
class JobRecord:
    """The part of a job that changes. Times are seconds since the epoch.

    Attributes:
        error: why it FAILED or TIMED_OUT.
        error_code: the code of the ServiceError that caused it, if one did.
        num_retries: how often it was queued again after an end.
        webhook_pending: its webhook has not been notified yet.
        retry_call: the `call` of the last `JobsPort.retry`, so that a repeated call is recognized.
    """

    state: JobState
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    error: str | None = None
    error_code: str | None = None
    num_retries: int = 0
    webhook_pending: bool = False
    retry_call: str | None = None

    @property
    def open(self) -> bool:
        """Whether its run or its webhook is still due."""
        return not self.state.final or self.webhook_pending


@dataclass(frozen=True)
class Job:
    """A job's current state. A COMPLETED one has its `outcomes`, in the order of its edits.

    Attributes:
        input_without_pictures: as in JobSpec.
    """

    id: str
    record: JobRecord
    seed: int
    outcomes: tuple[EditOutcome, ...] = ()
    input_without_pictures: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class JobEnd:
    """What `JobsPort.wait_for_pictures` returns.

    Attributes:
        outcomes: of a COMPLETED job, in the order of its edits; empty if only the store has them.
    """

    record: JobRecord
    outcomes: tuple[EditOutcome, ...] = ()


@dataclass(frozen=True)
class JobNews:
    """Changes of a job since the last call of `JobsPort.news`: finished edits and steps, by the index of their edit."""

    state: JobState
    outcomes: Mapping[int, EditOutcome]
    progress: Mapping[int, Progress]


@dataclass(frozen=True)
class JobCounts:
    """Numbers of jobs: completed, failed and retried since the start; in_queue and in_progress now; notifying are those
    that have ended and whose webhooks are being notified."""

    completed: int = 0
    failed: int = 0
    retried: int = 0
    in_queue: int = 0
    in_progress: int = 0
    notifying: int = 0


class JobsPort(Protocol):
    """The Jobs deployment as the ingress calls it.

    The methods that find a job by its id raise JobNotFound. While the job store cannot be reached, all methods but
    `release`, `counts` and `fault` raise ServiceUnavailable unless they need nothing of it; accepted jobs go on.
    """

    async def reserve(self, job_id: str, client: str) -> int:
        """Hold a place in the queue for a job whose pictures are about to be prepared, until it is submitted, or
        released, or some time has passed. Returns how many more jobs of the client may be submitted within the next
        second without this call, since there are many free places; with those of other clients, no more than that at
        once.

        Raises:
            Overloaded: the queue is full, or, as KeyPlacesTaken, the client's part of it.
            StoreFull: the store has just refused a job of this client.
        """

    async def release(self, job_id: str) -> None:
        """Give up the place of a job that will not be submitted."""

    async def submit(self, spec: JobSpec, pictures: Sequence[Pictures]) -> str:
        """Store and queue a job, which needs a place unless one is held for it. Returns its id, or that of the job with
        the same repeat key.

        Raises:
            Overloaded: the queue is full, or, as KeyPlacesTaken, the client's part of it.
            StoreFull: the store holds as many bytes as it may, in total or of this client.
            RepeatKeyConflict: the key was used with another request.
        """

    async def find(self, repeat_key: RepeatKey) -> JobSpec | None:
        """The kept job with a repeat key, or None.

        Raises:
            RepeatKeyConflict: the key was used with another request.
        """

    async def wait(self, job_id: str, wait_s: float) -> JobRecord:
        """The job's record once it has ended, or after `wait_s` seconds."""

    async def wait_for_pictures(self, job_id: str, wait_s: float) -> JobEnd:
        """As `wait`, for the client that submitted the job: if it completes meanwhile in this replica, its pictures
        come with it."""

    async def read(self, job_id: str) -> Job:
        """The job with its pictures, which may be many MB."""

    async def news(self, job_id: str, wait_s: float) -> JobNews:
        """Changes since the last call, waited for up to `wait_s` seconds. Each outcome is returned once."""

    async def cancel(self, job_id: str) -> JobRecord:
        """Cancel a job; one that has ended does not change."""

    async def retry(self, job_id: str, call: str) -> JobRecord:
        """Queue a FAILED or TIMED_OUT job again. A repeated `call` (any unique text) changes nothing.

        Raises:
            InvalidInput: the job is in another state.
            Overloaded: the queue is full, or, as KeyPlacesTaken, the client's part of it.
        """

    async def purge(self) -> int:
        """Cancel all waiting jobs; returns their number."""

    async def counts(self) -> JobCounts:
        """Numbers of jobs by state."""

    async def fault(self) -> str | None:
        """Why no job is accepted now, in one word ("store"), or None."""


JOBS_METHODS = frozenset(name for name in vars(JobsPort) if not name.startswith("_"))
"""The names of the port's methods, which the handle and the Jobs deployment pass on generically."""
