"""The part of a stored job that changes, and the rules of who may change it."""

from dataclasses import dataclass, replace

from serve_app.edits.job import JobRecord, JobState


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
