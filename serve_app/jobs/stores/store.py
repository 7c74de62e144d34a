"""The interface of the stores of jobs, and the rules that all stores share."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from serve_app.edits.job import Job, JobRecord, JobSpec, JobState, RepeatKey
from serve_app.edits.request import EditOutcome, Pictures
from serve_app.errors import JobNotFound, RepeatKeyConflict, StoreFull


@dataclass(frozen=True)
class ByteLimits:
    """The most bytes that a store holds when it takes a new job, that job included: pictures, specifications and
    outcomes of all kept jobs. Outcomes of accepted jobs are always stored.

    Attributes:
        per_client: of the jobs of one client.
    """

    total: int = sys.maxsize
    per_client: int = sys.maxsize

    def require_space(self, total: int, of_client: int) -> None:
        """Compare the bytes that would be held.

        Raises:
            StoreFull: they are more than the limits.
        """
        if total > self.total:
            raise StoreFull(
                "The job store is full; try again when earlier jobs have ended or expired (jobs.max_store_bytes)."
            )
        if of_client > self.per_client:
            raise StoreFull(
                "The jobs of this API key fill its share of the job store; try again when earlier ones have ended or "
                "expired (jobs.max_store_bytes_per_key)."
            )


UNLIMITED = ByteLimits()


class Store(Protocol):
    """Stores jobs durably: what a method has written when it returns survives the death of the process. Methods that
    read a job raise JobUnreadable where its bytes do not decode.

    Each open job (see `JobRecord.open`) has an owner, a Jobs replica that renews its lease with `beat`. A replica whose
    lease has expired loses its jobs to the next one that calls `adopt`. Its later writes are refused, so that a job
    ends once.

    Attributes:
        errors: raised by the methods, beside OSError, while the store cannot be reached or is full.
    """

    errors: ClassVar[tuple[type[Exception], ...]]

    def __init__(self, settings: Any) -> None: ...

    async def add(
        self,
        spec: JobSpec,
        pictures: Sequence[Pictures],
        record: JobRecord,
        owner: str,
        limits: ByteLimits = UNLIMITED,
    ) -> str:
        """Store a new job, completely or not at all. Returns its id. A job that is already kept under the id, or else
        under the repeat key, stays as it is, and its id is returned.

        Raises:
            RepeatKeyConflict: that job has another fingerprint.
            StoreFull: the job is new, and with it the store would hold more than `limits`.
        """

    async def find(self, job_id: str | None, repeat_key: RepeatKey | None) -> str | None:
        """The id of the kept job that `add` would return for this id and repeat key; None where it would store one.

        Raises:
            RepeatKeyConflict: that job has another fingerprint.
        """

    async def spec(self, job_id: str) -> JobSpec | None:
        """The job's specification; None if the job is not kept."""

    async def record(self, job_id: str) -> JobRecord | None:
        """The job's current record; None if the job is not kept."""

    async def pictures(self, job_id: str) -> tuple[Pictures, ...]:
        """The sets of prepared pictures, exactly as they were added. Empty if the job is not kept, and in a state that
        does not need them: they are deleted when such a state is stored."""

    async def outcomes(self, job_id: str) -> Mapping[int, EditOutcome]:
        """The finished edits by their index."""

    async def add_outcome(self, job_id: str, owner: str, index: int, outcome: EditOutcome) -> bool:
        """Store a finished edit; False, and nothing stored, unless the job is `owner`'s and its state is not final."""

    async def update(self, job_id: str, owner: str, record: JobRecord) -> bool:
        """Replace the record; False, and nothing stored, unless the job is `owner`'s and open. A final state stays:
        afterwards only `webhook_pending` changes.

        A job whose new record is not open is kept until `spec.retention_s` seconds after `ended_at`, and so is its
        repeat key.
        """

    async def complete(self, job_id: str, owner: str, record: JobRecord, index: int, outcome: EditOutcome) -> bool:
        """`add_outcome` of the last edit, then `update`; returns what that returns."""
        await self.add_outcome(job_id, owner, index, outcome)
        return await self.update(job_id, owner, record)

    async def cancel(self, job_id: str, ended_at: float) -> bool:
        """Make the job CANCELLED, whoever owns it; False unless its state was not final."""

    async def reopen(self, job_id: str, owner: str, record: JobRecord) -> bool:
        """Replace record and owner of a job in a retryable state, and delete its outcomes; False in any other state."""

    async def condemn(self, job_id: str, owner: str, record: JobRecord) -> bool:
        """End a job that cannot be read: replace its record without decoding the old one. False, and nothing stored,
        unless the job is `owner`'s and listed as open."""

    async def beat(self, owner: str, lease_s: float) -> Mapping[str, JobState]:
        """Renew the lease of `owner` for `lease_s` seconds; returns its open jobs with their states."""

    async def adopt(self, owner: str) -> Sequence[str]:
        """Make `owner` the owner of all open jobs whose owner's lease has expired; returns their ids."""

    async def open_jobs(self) -> Mapping[str, JobState]:
        """All open jobs with their states, whoever owns them."""

    async def sweep(self) -> None:
        """Delete expired jobs and leases."""

    async def close(self) -> None: ...

    @staticmethod
    def is_damage(problem: Exception) -> bool:
        """Whether an error says that a part of a store is damaged, so that no later attempt succeeds. The error may be
        of another kind of store."""


@dataclass(frozen=True)
class StoredState:
    """The part of a stored job that changes, and who may change it. Methods that return a new state return None where
    the change is refused.

    Attributes:
        retention_s: of the job's spec, which never changes.
    """

    record: JobRecord
    owner: str
    retention_s: float

    @property
    def expires_at(self) -> float | None:
        """When the job may be deleted, in seconds since the epoch; None while it is open."""
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
        # A job ends once, even if it is still open because its webhook is pending.
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


def require_same(stored: str, fingerprint: str) -> None:
    """Compare the fingerprints of a stored job and of a request with the same id or repeat key.

    Raises:
        RepeatKeyConflict: they differ.
    """
    if stored != fingerprint:
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
    in_order = tuple(outcomes[index] for index in range(len(spec.edits)))
    return Job(job_id, record, spec.seed, in_order, spec.input_without_pictures)


def not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"There is no job {job_id}, or it is no longer kept.")
