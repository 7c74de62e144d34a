"""A job in the hands of this replica."""

import asyncio
from dataclasses import dataclass, field

from serve_app.edits.job import JobRecord, JobSpec, JobState
from serve_app.edits.request import LOW_PRIORITY_DELAY_S, EditOutcome, Progress


@dataclass(eq=False)
class LiveJob:
    """What is known of a job beside the store.

    Attributes:
        record: as stored, but that IN_PROGRESS is known here first.
        outcomes: finished edits by index, as long as the job runs; afterwards the store has them.
        progress: the steps of the others.
        task: what runs it, once it has its turn.
        limit: the deadline of its execution, set at its pick-up.
        expiry: ends it when it was not picked up in time.
        writing: held while its record is written, so that the last word is the last one written.
    """

    spec: JobSpec
    record: JobRecord
    outcomes: dict[int, EditOutcome] = field(default_factory=dict)
    progress: dict[int, Progress] = field(default_factory=dict)
    task: "asyncio.Task[None] | None" = None
    limit: asyncio.Timeout | None = None
    expiry: asyncio.TimerHandle | None = None
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def rank(self) -> float:
        """Its place in the queue: the smallest is next."""
        return self.record.created_at + (LOW_PRIORITY_DELAY_S if self.spec.edits[0].low_priority else 0.0)

    @property
    def waits(self) -> bool:
        return self.record.state is JobState.IN_QUEUE

    def changed(self) -> asyncio.Event:
        """Set at the next change. Taken before one looks, no change is missed."""
        return self._changed

    def tell(self) -> None:
        """Wake all who wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass
class Feed:
    """What the listeners of a job's stream have been told: pictures by index, and the last steps."""

    pictures: set[int] = field(default_factory=set)
    progress: dict[int, Progress] = field(default_factory=dict)
