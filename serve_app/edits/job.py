"""Jobs: what outlives the connection that asked for it. The vocabulary between ingress, Jobs and store."""

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


@dataclass(frozen=True)
class Policy:
    """How long a job may run and wait, in seconds. Priority is a matter of its edits.

    Attributes:
        execution_timeout_s: from its pick-up on; after it the job is FAILED.
        ttl_s: from its arrival to its pick-up; after it the job is TIMED_OUT.
        timeout_s: from its request's arrival to its end; after it the job is FAILED. None: no such limit.
        spent_s: what the ingress used of that before the job was stored.
    """

    execution_timeout_s: float = 600.0
    ttl_s: float = 86400.0
    timeout_s: float | None = None
    spent_s: float = 0.0


EXECUTION_TIMEOUT = "executionTimeout exceeded"
"""The error of a job that ran for longer than its `Policy.execution_timeout_s`: RunPod's own text."""


@dataclass(frozen=True)
class RepeatKey:
    """An Idempotency-Key and the fingerprint of the request that came with it."""

    key: str
    fingerprint: str


@dataclass(frozen=True)
class JobSpec:
    """A job as it was requested; it never changes. The prepared pictures travel beside it, as sets.

    Attributes:
        edits: one for each output picture.
        pictures_of: for each edit, the index of its set of pictures. Views of one upload share a set.
        retention_s: how long the job is kept after its end.
        webhook: the URL that is notified of the end.
        input_without_pictures: the request's `input`, which the webhook receives.
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


@dataclass(frozen=True)
class JobRecord:
    """What changes in a job's life. Times are seconds since the epoch.

    Attributes:
        error: why it FAILED or TIMED_OUT.
        error_code: the code of the ServiceError behind that, if one was.
        num_retries: how often it was queued again after an end.
        webhook_pending: its webhook has not been notified yet.
        retry_call: names the call that queued it again last, so that the call can be repeated.
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
        """Whether somebody still has to work on it."""
        return not self.state.final or self.webhook_pending


@dataclass(frozen=True)
class Job:
    """A job as it stands. `outcomes` are there when it is COMPLETED, in order."""

    id: str
    record: JobRecord
    seed: int
    outcomes: tuple[EditOutcome, ...] = ()


@dataclass(frozen=True)
class JobNews:
    """What is new in a job since it was last asked: finished pictures and steps, with the index of their edit."""

    state: JobState
    outcomes: Mapping[int, EditOutcome]
    progress: Mapping[int, Progress]


@dataclass(frozen=True)
class JobCounts:
    """Jobs by state: those that ended or were retried since the start, and those that are there now."""

    completed: int = 0
    failed: int = 0
    retried: int = 0
    in_queue: int = 0
    in_progress: int = 0


class JobsPort(Protocol):
    """The Jobs deployment as the ingress sees it.

    All methods that take a job's id raise JobNotFound. All methods raise ServiceUnavailable while the job store cannot
    be reached; what was accepted before goes on.
    """

    async def room(self) -> int:
        """How many more jobs the queue takes now. Called before a request's pictures are prepared."""

    async def submit(self, spec: JobSpec, pictures: Sequence[Pictures]) -> str:
        """Store and queue a job; its id, or that of the job that the same repeat key belongs to.

        Raises:
            Overloaded: the queue is full.
            RepeatKeyConflict: the key came with another request before.
        """

    async def find(self, repeat_key: RepeatKey) -> JobSpec | None:
        """The kept job that a repeat key belongs to.

        Raises:
            RepeatKeyConflict: the key came with another request before.
        """

    async def wait(self, job_id: str, wait_s: float) -> Job:
        """The job at its end, or as it stands after `wait_s`."""

    async def news(self, job_id: str, wait_s: float) -> JobNews:
        """What is new, waited for up to `wait_s`; each outcome is told once."""

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job; one that has ended stays as it is."""

    async def retry(self, job_id: str, call: str) -> Job:
        """Queue a FAILED or TIMED_OUT job again. The same `call` (any unique text) once more changes nothing.

        Raises:
            InvalidInput: the job is in another state.
            Overloaded: the queue is full.
        """

    async def purge(self) -> int:
        """Cancel all jobs that wait; how many those were."""

    async def counts(self) -> JobCounts:
        """How many jobs there are and were."""

    async def fault(self) -> str | None:
        """Why no job would be accepted now, in one word ("store"), or None."""


JOBS_METHODS = frozenset(name for name in vars(JobsPort) if not name.startswith("_"))
"""The names of the port's methods: between `jobs_port` and the Jobs deployment, all take the same way."""
