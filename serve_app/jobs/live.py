"""A job that this replica runs, and the state of its event streams."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace

from serve_app.edits.fairness import rank_of
from serve_app.edits.job import EXECUTION_TIMEOUT, JobNews, JobRecord, JobSpec, JobState
from serve_app.edits.request import EditOutcome, Pictures, Progress
from serve_app.edits.service import too_late
from serve_app.errors import DeadlineExceeded


@dataclass(eq=False)
class LiveJob:
    """What this replica knows of a job beside the store. Times are seconds on the event loop's clock.

    Attributes:
        record: as stored, except that IN_PROGRESS is known here first.
        was_picked_up: by an earlier owner, which died.
        pictures: its sets, between its submission and its start, if it starts at once; else only the store has them.
        deadline: when it must have ended (`Policy.timeout_s`); None: no limit.
        run_until: when its execution must have ended; set at its pick-up.
        outcomes: finished edits by index while the job runs; afterwards only the store has them, except while someone
            waits for its pictures.
        last: the last edit to finish, until the job's end is stored with it.
        num_waiting: how many wait for its pictures.
        progress: the last steps of the other edits, each with its last preview.
        task: runs the job, once it is its turn.
        limits: the timeouts of the edits that are being drawn.
        expiry: ends the job if it is not picked up in time.
        writing: held while its record is written, so that changes are stored in their order.
        context: the context variables of the request that submitted the job. Its task runs in them, so that Serve logs
            that request's id, even if the end of another job starts the task.
    """

    spec: JobSpec
    record: JobRecord
    was_picked_up: bool = False
    pictures: Sequence[Pictures] = ()
    deadline: float | None = None
    run_until: float | None = None
    outcomes: dict[int, EditOutcome] = field(default_factory=dict)
    last: tuple[int, EditOutcome] | None = None
    num_waiting: int = 0
    progress: dict[int, Progress] = field(default_factory=dict)
    task: "asyncio.Task[None] | None" = None
    limits: set[asyncio.Timeout] = field(default_factory=set)
    expiry: asyncio.TimerHandle | None = None
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    context: Context = field(default_factory=copy_context)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def client(self) -> str:
        return self.spec.client

    @property
    def is_low_priority(self) -> bool:
        return self.spec.edits[0].low_priority

    @property
    def rank(self) -> float:
        """Place among its client's jobs: the one with the smallest rank is next."""
        return rank_of(self.record.created_at, self.is_low_priority)

    @property
    def waits(self) -> bool:
        return self.record.state is JobState.IN_QUEUE

    @property
    def draw_until(self) -> float | None:
        """When its edits must be drawn, as far as is known now."""
        ends = [end for end in (self.deadline, self.run_until) if end is not None]
        return min(ends, default=None)

    def deadline_error(self) -> DeadlineExceeded:
        """The error of the limit that `draw_until` is due to."""
        timeout_s = self.spec.policy.timeout_s
        if timeout_s is not None and self.deadline == self.draw_until:
            return DeadlineExceeded(too_late(timeout_s))
        return DeadlineExceeded(EXECUTION_TIMEOUT)

    def cancel_expiry(self) -> None:
        if self.expiry is not None:
            self.expiry.cancel()

    @contextmanager
    def keep_outcomes(self) -> Iterator[None]:
        """Keep the outcomes of a job that ends meanwhile until the end of the block."""
        self.num_waiting += 1
        try:
            yield
        finally:
            self.num_waiting -= 1
            if self.record.state.final:
                self.drop_outcomes()

    def drop_outcomes(self) -> None:
        """Free the memory of the outcomes, unless `keep_outcomes` keeps them."""
        if self.num_waiting == 0:
            self.outcomes.clear()

    def changed(self) -> asyncio.Event:
        """Set at the next change. Get it before reading the job, so that no change is missed."""
        return self._changed

    def notify(self) -> None:
        """Wake all who wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass
class StreamCursor:
    """What the listeners of a job's stream have received: pictures by index, and the last steps.

    Attributes:
        expires_at: when it may be dropped unless the job runs here, in seconds since the epoch.
        has_ended: the listeners have received the final state, so nothing new can come.
        reading: held while the job is read for a listener.
    """

    pictures: set[int] = field(default_factory=set)
    progress: dict[int, Progress] = field(default_factory=dict)
    expires_at: float = 0.0
    has_ended: bool = False
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    def unsent(self, state: JobState, outcomes: Mapping[int, EditOutcome], progress: Mapping[int, Progress]) -> JobNews:
        return JobNews(
            state,
            {index: outcome for index, outcome in outcomes.items() if index not in self.pictures},
            {index: self._new(index, step) for index, step in progress.items() if self.progress.get(index) != step},
        )

    def _new(self, index: int, step: Progress) -> Progress:
        """The step, without a preview that was sent with an earlier one."""
        sent = self.progress.get(index)
        return step if sent is None or sent.preview != step.preview else replace(step, preview=None)

    def advance(self, news: JobNews) -> None:
        """Mark as received."""
        self.pictures.update(news.outcomes)
        for index, step in news.progress.items():
            sent = self.progress.get(index)
            preview = sent.preview if step.preview is None and sent is not None else step.preview
            self.progress[index] = replace(step, preview=preview)
        self.has_ended = news.state.final
        for index in [*self.progress] if self.has_ended else news.outcomes:
            self.progress.pop(index, None)
