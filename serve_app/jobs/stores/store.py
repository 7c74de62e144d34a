"""Where jobs are kept, so that none is lost: one interface, two backends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from serve_app.edits.job import Job, JobRecord, JobSpec, JobState, RepeatKey
from serve_app.edits.request import EditOutcome, Pictures
from serve_app.errors import JobNotFound, RepeatKeyConflict


class Store(Protocol):
    """Jobs, durably: what a method has done when it returns survives the death of the process. Methods that read a job
    raise JobUnreadable where its bytes do not decode.

    Each open job (see `JobRecord.open`) has an owner, a Jobs replica that proves by `beat` that it lives. A replica
    whose lease has run out loses its jobs to the next one that calls `adopt`; what it may write afterwards is refused,
    so that a job ends once.

    Attributes:
        errors: what its methods raise, apart from OSError, while it cannot be reached or is full.
    """

    errors: ClassVar[tuple[type[Exception], ...]]

    def __init__(self, settings: Any) -> None: ...

    async def add(self, spec: JobSpec, pictures: Sequence[Pictures], record: JobRecord, owner: str) -> str:
        """Store a new job, all of it or nothing. Returns its id; that of the stored job where the id is known already,
        or where its repeat key belongs to another job that is still kept.

        Raises:
            RepeatKeyConflict: that job's fingerprint is another one.
        """

    async def find(self, job_id: str | None, repeat_key: RepeatKey | None) -> str | None:
        """The id of the kept job that `add` would return for this id and repeat key; None where it would store one.

        Raises:
            RepeatKeyConflict: that job's fingerprint is another one.
        """

    async def spec(self, job_id: str) -> JobSpec | None:
        """The job's specification; None where the job is not or no longer kept."""

    async def record(self, job_id: str) -> JobRecord | None:
        """How the job stands; None where it is not or no longer kept."""

    async def pictures(self, job_id: str) -> tuple[Pictures, ...]:
        """The sets of prepared pictures, bit by bit as they were added. Empty where the job is not kept."""

    async def outcomes(self, job_id: str) -> Mapping[int, EditOutcome]:
        """The finished edits by their index."""

    async def add_outcome(self, job_id: str, owner: str, index: int, outcome: EditOutcome) -> bool:
        """Store a finished edit; False, and nothing stored, unless the job is `owner`'s and its state is not final."""

    async def update(self, job_id: str, owner: str, record: JobRecord) -> bool:
        """Replace the record; False, and nothing stored, unless the job is `owner`'s and open. A state that is final
        stays: nothing but `webhook_pending` changes any more.

        Where the new record is no longer open, the job has its last owner and is kept for `spec.retention_s` more
        seconds after `ended_at`, its repeat key as long.
        """

    async def cancel(self, job_id: str, ended_at: float) -> bool:
        """Make the job CANCELLED, whoever owns it; False unless its state was not final."""

    async def reopen(self, job_id: str, owner: str, record: JobRecord) -> bool:
        """Give a job of a retryable state, its outcomes dropped, a new record and owner; False in any other state."""

    async def condemn(self, job_id: str, owner: str, record: JobRecord) -> bool:
        """End a job of `owner` that cannot be read: replace its record without decoding the old one. False, and nothing
        stored, unless the job is `owner`'s and listed as open."""

    async def beat(self, owner: str, lease_s: float) -> Mapping[str, JobState]:
        """Prove that `owner` lives for `lease_s` more seconds; its open jobs and their states."""

    async def adopt(self, owner: str) -> Sequence[str]:
        """Make `owner` the owner of all open jobs whose owner's lease has run out; which those were."""

    async def open_jobs(self) -> Mapping[str, JobState]:
        """All open jobs, whoever owns them."""

    async def sweep(self) -> None:
        """Forget what need not be kept any longer."""

    async def close(self) -> None: ...

    @staticmethod
    def is_damage(problem: Exception) -> bool:
        """Whether an error says that a part of a store is damaged, so that no later attempt succeeds. The error may be
        of another kind of store."""


@dataclass(frozen=True)
class StoredState:
    """What changes of a stored job. The methods that return a new state return None where the change is refused.

    Attributes:
        retention_s: of the job's spec, which never changes.
    """

    record: JobRecord
    owner: str
    retention_s: float

    @property
    def expires_at(self) -> float | None:
        """When the job may be forgotten, in seconds since the epoch; None as long as it is open."""
        if self.record.open:
            return None
        if self.record.ended_at is None:
            raise ValueError(f"a job that is {self.record.state} has an end, but its ended_at is None")
        return self.record.ended_at + self.retention_s

    def takes_outcomes(self, owner: str) -> bool:
        return owner == self.owner and not self.record.state.final

    def updated(self, owner: str, record: JobRecord) -> "StoredState | None":
        if owner != self.owner or not self.record.open:
            return None
        # A job ends once, also one that is open still because its webhook has to be told.
        if self.record.state.final and record.state is not self.record.state:
            return None
        return replace(self, record=record)

    def cancelled(self, ended_at: float) -> "StoredState | None":
        if self.record.state.final:
            return None
        return replace(self, record=replace(self.record, state=JobState.CANCELLED, ended_at=ended_at))

    def reopened(self, owner: str, record: JobRecord) -> "StoredState | None":
        if not self.record.state.retryable:
            return None
        return replace(self, record=record, owner=owner)


def fingerprint_of(repeat_key: RepeatKey | None) -> str:
    """Empty where the job has no repeat key."""
    return repeat_key.fingerprint if repeat_key is not None else ""


def require_same(stored: str, given: str) -> None:
    """Compare the fingerprints of a stored job and of one that may be the same.

    Raises:
        RepeatKeyConflict: they differ.
    """
    if stored != given:
        raise RepeatKeyConflict(
            "This Idempotency-Key came with another request before; send a new one with a new request.",
            "Idempotency-Key",
        )


async def read_job(store: Store, job_id: str, record: JobRecord) -> Job:
    """A stored job with its outcomes, if its record says COMPLETED.

    Raises:
        JobNotFound: it is not kept, or has expired since its record was read.
        JobUnreadable: its bytes do not decode.
    """
    spec = await store.spec(job_id)
    if spec is None:
        raise not_found(job_id)
    if record.state is not JobState.COMPLETED:
        return Job(job_id, record, spec.seed)
    outcomes = await store.outcomes(job_id)
    if len(outcomes) < len(spec.edits):
        raise not_found(job_id)
    return Job(job_id, record, spec.seed, tuple(outcomes[index] for index in range(len(spec.edits))))


def not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"There is no job {job_id}, or it is no longer kept.")
