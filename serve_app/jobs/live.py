"""A job that this replica runs."""

import asyncio
from dataclasses import dataclass, field

from serve_app.edits.job import JobRecord, JobSpec, JobState
from serve_app.edits.request import LOW_PRIORITY_DELAY_S, EditOutcome, Progress


@dataclass(eq=False)
class LiveJob:
    """What is known of a job beside the store. Times are seconds on the event loop's clock.

    Attributes:
        record: as stored, but that IN_PROGRESS is known here first.
        was_picked_up: by an earlier owner, which died.
        deadline: when it must have ended (`Policy.timeout_s`); None: no such limit.
        run_until: when its execution must have ended, from its pick-up on.
        outcomes: finished edits by index, as long as the job runs; afterwards the store has them.
        progress: the steps of the others.
        task: what runs it, once it has its turn.
        limits: the timeouts of the edits that are being drawn.
        expiry: ends it when it was not picked up in time.
        writing: held while its record is written, so that the last change is the last one written.
    """

    spec: JobSpec
    record: JobRecord
    was_picked_up: bool = False
    deadline: float | None = None
    run_until: float | None = None
    outcomes: dict[int, EditOutcome] = field(default_factory=dict)
    progress: dict[int, Progress] = field(default_factory=dict)
    task: "asyncio.Task[None] | None" = None
    limits: set[asyncio.Timeout] = field(default_factory=set)
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

    @property
    def draw_until(self) -> float | None:
        """When its edits must be drawn, as far as that is known now."""
        ends = [end for end in (self.deadline, self.run_until) if end is not None]
        return min(ends, default=None)

    def changed(self) -> asyncio.Event:
        """Set at the next change. Taken before one looks, no change is missed."""
        return self._changed

    def notify(self) -> None:
        """Wake all who wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass
class StreamCursor:
    """What the listeners of a job's stream have received: pictures by index, and the last steps."""

    pictures: set[int] = field(default_factory=set)
    progress: dict[int, Progress] = field(default_factory=dict)
