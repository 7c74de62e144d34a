"""The engine: one thread that admits waiting edits, steps all running ones as a pack, and retires the finished.

Because a step is the unit, an edit joins at the next step, and a cancelled or expired one leaves at the next step: the
room that it leaves is given away in that same step. Beside the engine thread, one thread prepares edits (tokens,
hashes, noise) and one compresses pictures, so that it waits for neither.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

from serve_app.editor.cache import CacheStats
from serve_app.editor.model import Draft, Prepared
from serve_app.editor.outbox import Outbox
from serve_app.editor.ticket import EngineStats, Progress, Ticket
from serve_app.edits.request import EditJob, EditTimings, Pictures, Pixels
from serve_app.errors import DeadlineExceeded, EditCancelled, Overloaded, ServiceUnavailable

logger = logging.getLogger(__name__)


class StepModel(Protocol):
    """What the engine drives; EditModel is the real one. All calls but `prepare` come from the engine thread."""

    def prepare(self, job: EditJob, pictures: Pictures) -> Prepared: ...
    def begin(self, edits: Sequence[Prepared]) -> list[Draft]: ...
    def step(self, drafts: Sequence[Draft]) -> None: ...
    def preview(self, draft: Draft) -> Pixels: ...
    def finish(self, draft: Draft) -> Pixels: ...

    @property
    def cache_stats(self) -> dict[str, CacheStats]: ...


@dataclass(eq=False)
class _Waiting:
    ticket: Ticket
    prepared: Prepared


@dataclass(eq=False)
class _Running:
    ticket: Ticket
    draft: Draft
    timings: EditTimings
    began_steps_at: float
    previews_at: frozenset[int] = field(default_factory=frozenset)


class Engine:
    """Runs edits packed.

    Args:
        load: makes the model; called on the engine thread, which alone runs it.
        max_pack_tokens: budget of picture tokens in one step; an edit above it runs alone.
        max_waiting: edits that may wait; one more is refused.
        clock: seconds, by which deadlines and timings are taken.
    """

    def __init__(
        self,
        load: Callable[[], StepModel],
        *,
        max_pack_tokens: int,
        max_waiting: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._max_pack_tokens = max_pack_tokens
        self._max_waiting = max_waiting
        self._clock = clock
        self._work = threading.Condition()
        self._preparing: set[int] = set()
        self._waiting: list[_Waiting] = []
        self._running: list[_Running] = []
        self._stats = EngineStats()
        self._ready: Future[None] = Future()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._outbox = Outbox(clock)

    # Any thread

    def start(self) -> None:
        """Start the thread and return when the model is loaded; raises what loading raised."""
        self._thread.start()
        self._ready.result()

    def submit(self, ticket: Ticket) -> None:
        """Queue an edit; `ticket.future` will tell its end.

        Raises:
            Overloaded: the queue is full.
            ServiceUnavailable: the engine is closing or its thread has died.
        """
        with self._work:
            if self._closing or not self._thread.is_alive():
                raise ServiceUnavailable("The editor is shutting down; try again.")
            if len(self._preparing) + len(self._waiting) >= self._max_waiting:
                raise Overloaded(f"{self._max_waiting} edits are waiting already; try again later.")
            # From here on the engine alone ends this future: an asyncio task that awaits it would, when cancelled,
            # cancel it as well, and the engine could no longer tell its end.
            ticket.future.set_running_or_notify_cancel()
            ticket.submitted_at = self._clock()
            self._preparing.add(id(ticket))
            self._preparer.submit(self._prepare, ticket)

    def close(self) -> None:
        """Fail what waits and runs, and end the threads."""
        with self._work:
            self._closing = True
            self._work.notify()
        self._thread.join()
        self._preparer.shutdown()
        self._outbox.close()

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def stats(self) -> EngineStats:
        with self._work:
            now = {"preparing": len(self._preparing), "waiting": len(self._waiting), "running": len(self._running)}
            return replace(self._stats, **now, **self._outbox.ends)

    @property
    def cache_stats(self) -> dict[str, CacheStats]:
        """Look-ups of the model's caches."""
        return self._model.cache_stats

    # The preparing thread

    def _prepare(self, ticket: Ticket) -> None:
        try:
            prepared = self._model.prepare(ticket.job, ticket.pictures)
        except Exception as problem:
            with self._work:
                self._preparing.discard(id(ticket))
            self._outbox.failed(ticket, problem)
            return
        with self._work:
            self._preparing.discard(id(ticket))
            closing = self._closing
            if not closing:
                self._waiting.append(_Waiting(ticket, prepared))
                self._waiting.sort(key=lambda waiting: waiting.ticket.rank)
                self._work.notify()
        if closing:
            self._outbox.failed(ticket, _stopped())

    # The engine thread

    def _run(self) -> None:
        try:
            self._model = self._load()
        except BaseException as problem:
            self._ready.set_exception(problem)
            return
        self._ready.set_result(None)
        try:
            while self._wait_for_work():
                self._sweep()
                self._admit()
                self._step()
                self._retire()
        finally:
            self._closing = True
            self._fail_all()

    def _wait_for_work(self) -> bool:
        with self._work:
            self._work.wait_for(lambda: self._closing or self._waiting or self._running)
            return not self._closing

    def _sweep(self) -> None:
        """Drop what was cancelled or has expired since the last step."""
        now = self._clock()
        with self._work:
            tickets = self._tickets()
            gone = [ticket for ticket in tickets if ticket.cancelled or ticket.expired(now)]
            self._waiting = [each for each in self._waiting if each.ticket not in gone]
            self._running = [each for each in self._running if each.ticket not in gone]
        for ticket in gone:
            why = "cancelled" if ticket.cancelled else "expired"
            logger.info("edit %s %s after %.3f s", ticket.job.request_id, why, now - ticket.submitted_at)
            expired = DeadlineExceeded(f"The edit was not done within its {ticket.job.timeout_s} s.")
            self._outbox.failed(ticket, EditCancelled("The edit was cancelled.") if ticket.cancelled else expired)

    def _tickets(self) -> list[Ticket]:
        return [waiting.ticket for waiting in self._waiting] + [running.ticket for running in self._running]

    def _admit(self) -> None:
        """Take waiting edits in their order while the pack stays within the budget, and encode them together."""
        admitted = self._take_admissible()
        if not admitted:
            return
        began = self._clock()
        for waiting, draft in zip(admitted, self._begin(admitted), strict=True):
            if draft is not None:
                self._running.append(self._as_running(waiting.ticket, draft, began))

    def _take_admissible(self) -> list[_Waiting]:
        admitted: list[_Waiting] = []
        tokens = sum(running.ticket.num_tokens for running in self._running)
        with self._work:
            while self._waiting:
                tokens += self._waiting[0].ticket.num_tokens
                if tokens > self._max_pack_tokens and (self._running or admitted):
                    break
                admitted.append(self._waiting.pop(0))
        return admitted

    def _begin(self, admitted: Sequence[_Waiting]) -> list[Draft | None]:
        """Drafts in order; None for an edit that failed. A batch that fails as a whole is begun one by one."""
        try:
            return [*self._model.begin([waiting.prepared for waiting in admitted])]
        except Exception as problem:
            if len(admitted) == 1:
                self._outbox.failed(admitted[0].ticket, problem)
                return [None]
            return [draft for waiting in admitted for draft in self._begin([waiting])]

    def _as_running(self, ticket: Ticket, draft: Draft, began: float) -> _Running:
        now = self._clock()
        num_steps = draft.schedule.num_steps
        timings = EditTimings(
            queue_s=began - ticket.submitted_at,
            encode_s=now - began,
            steps_s=0.0,
            decode_s=0.0,
            compress_s=0.0,
            num_steps=num_steps,
            shared_steps=0,
        )
        return _Running(ticket, draft, timings, now, preview_steps(ticket.job.num_previews, num_steps))

    def _step(self) -> None:
        pack = list(self._running)
        if not pack:
            return
        try:
            self._model.step([running.draft for running in pack])
        except Exception as problem:
            self._step_apart(pack, problem)
        self._count_step(pack)
        for running in self._running:
            self._report(running)

    def _step_apart(self, pack: list[_Running], problem: Exception) -> None:
        """A pack failed as a whole: step each edit alone, so that only the guilty one fails."""
        logger.warning("a packed step of %d edits failed, stepping them apart: %r", len(pack), problem)
        for running in pack:
            try:
                self._model.step([running.draft])
            except Exception as own_problem:
                self._running.remove(running)
                self._outbox.failed(running.ticket, own_problem)

    def _count_step(self, pack: list[_Running]) -> None:
        if len(pack) > 1:
            for running in pack:
                running.timings = replace(running.timings, shared_steps=running.timings.shared_steps + 1)
        with self._work:
            self._stats = replace(
                self._stats,
                num_steps=self._stats.num_steps + 1,
                num_edit_steps=self._stats.num_edit_steps + len(pack),
                max_pack=max(self._stats.max_pack, len(pack)),
            )

    def _report(self, running: _Running) -> None:
        if running.ticket.on_progress is None:
            return
        draft = running.draft
        preview = self._preview(running) if draft.index in running.previews_at else None
        self._outbox.progress(running.ticket, Progress(draft.index, draft.schedule.num_steps), preview)

    def _preview(self, running: _Running) -> Pixels | None:
        try:
            return self._model.preview(running.draft)
        except Exception:
            logger.exception("no preview of edit %s", running.ticket.job.request_id)
            return None

    def _retire(self) -> None:
        for running in [running for running in self._running if running.draft.done]:
            self._running.remove(running)
            began = self._clock()
            try:
                pixels = self._model.finish(running.draft)
            except Exception as problem:
                self._outbox.failed(running.ticket, problem)
                continue
            timings = replace(running.timings, steps_s=began - running.began_steps_at, decode_s=self._clock() - began)
            self._outbox.finished(running.ticket, pixels, timings)

    def _fail_all(self) -> None:
        with self._work:
            tickets = self._tickets()
            self._running.clear()
            self._waiting.clear()
        for ticket in tickets:
            self._outbox.failed(ticket, _stopped())


def _stopped() -> ServiceUnavailable:
    return ServiceUnavailable("The editor stopped before this edit was done; try again.")


def preview_steps(num_previews: int, num_steps: int) -> frozenset[int]:
    """After which steps (from 1) previews are due: evenly spread, never after the last one."""
    return frozenset(
        round(number * num_steps / (num_previews + 1)) for number in range(1, num_previews + 1)
    ) & frozenset(range(1, num_steps))
