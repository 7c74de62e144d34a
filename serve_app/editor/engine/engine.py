"""The engine: one thread that admits waiting edits, steps all running ones as a pack, and retires the finished.

Because a step is the unit, an edit joins at the next step, and a cancelled or expired one leaves at the next step: the
room that it leaves is given away in that same step. Beside the engine thread, one thread prepares edits (tokens,
hashes, noise) and one compresses pictures, so that it waits for neither.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

from serve_app.editor.engine.budget import TokenBudget
from serve_app.editor.engine.failures import DeviceLost, Failed, Fault, device_failed
from serve_app.editor.engine.outbox import Outbox
from serve_app.editor.engine.running import E, Running, Waiting, as_running, first_within, num_tokens
from serve_app.editor.engine.scheduler import Intake, stopped
from serve_app.editor.engine.stats import CacheStats, EngineStats
from serve_app.editor.engine.step_model import StepModel
from serve_app.editor.engine.ticket import Ticket
from serve_app.editor.engine.watchdog import Watchdog
from serve_app.edits.request import Pixels, Progress
from serve_app.errors import DeadlineExceeded, EditCancelled, ServiceUnavailable

logger = logging.getLogger(__name__)


class Engine:
    """Runs edits packed.

    An edit that fails, fails alone. Where memory runs out, packs are smaller for a while. Where the device is lost, or
    one call of the model takes too long, the engine is over: of the edits in its hands those that may be the cause
    fail with EditFailed, the others with ServiceUnavailable, for another replica can still do them.

    Args:
        load: makes the model; called on the engine thread, which alone runs it.
        max_pack_tokens: budget of picture tokens in one step; an edit above it runs alone.
        max_waiting: edits that may wait; one more is refused.
        wedged_after_s: one call of the model may take so long; loading may take longer.
        clock: seconds, by which deadlines and timings are taken.
    """

    def __init__(
        self,
        load: Callable[[], StepModel],
        *,
        max_pack_tokens: int,
        max_waiting: int,
        wedged_after_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._clock = clock
        self._outbox = Outbox(clock)
        self._intake = Intake(max_waiting, self._outbox, clock)
        self._budget = TokenBudget(max_pack_tokens, clock)
        self._watchdog = Watchdog(wedged_after_s, clock)
        self._admitted: list[Waiting] = []
        self._running: list[Running] = []
        self._stats = EngineStats()
        self._ready: Future[None] = Future()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # Any thread

    def start(self) -> None:
        """Start the thread and return when the model is loaded; raises what loading raised."""
        self._thread.start()
        self._ready.result()

    def submit(self, ticket: Ticket) -> None:
        """Queue an edit; `ticket.future` will tell its end.

        Raises:
            Overloaded: the queue is full.
            ServiceUnavailable: the engine is closing or has come to its end.
        """
        self._intake.submit(ticket)

    def close(self, timeout_s: float = 10.0) -> None:
        """Fail what waits and runs, and end the threads. A thread that is stuck is left behind after the timeout, or at
        once where it has been given up already."""
        patience_s = 0.0 if self._closing else timeout_s
        self._refuse()
        self._thread.join(patience_s)
        self._end_all()
        self._intake.join()
        self._outbox.close()

    def check_health(self) -> None:
        """Cheap, and safe on an event loop. Edits that are stuck in the engine are told so: Serve lets the requests of
        a replica end before it replaces it, and these never would.

        Raises:
            ServiceUnavailable: the engine cannot go on.
        """
        stuck = self._watchdog.overdue
        if stuck is not None and not self._closing:
            logger.critical("the engine is stuck in %s since %.0f s", stuck.name, self._clock() - stuck.began)
            self._end_all(stuck.suspects)
        if not self.alive:
            raise ServiceUnavailable("The engine has died or is stuck.")

    @property
    def closing(self) -> bool:
        """Whether it takes no more edits."""
        return self._closing

    @property
    def alive(self) -> bool:
        """Whether it can draw."""
        return self._thread.is_alive() and not self._closing and self._watchdog.overdue is None

    @property
    def stats(self) -> EngineStats:
        now = {**self._intake.counts, "running": len(self._running), "token_budget": self._budget.tokens}
        return replace(self._stats, **now, **self._outbox.ends)

    @property
    def cache_stats(self) -> dict[str, CacheStats]:
        """Look-ups of the model's caches."""
        return self._model.cache_stats

    def _refuse(self) -> None:
        """Take no more edits, and fail those that wait."""
        self._closing = True
        for ticket in self._intake.close():
            self._outbox.failed(ticket, stopped())

    def _end_all(self, suspects: Sequence[Ticket] = ()) -> None:
        """Fail every edit; those that may be the cause are not to be run again. New ones are refused before, so that
        whoever hears of a failure finds the engine dead."""
        self._refuse()
        admitted = [waiting.ticket for waiting in self._admitted]
        for ticket in [*admitted, *(running.ticket for running in self._running)]:
            self._outbox.failed(ticket, device_failed() if ticket in suspects else stopped())

    # The engine thread

    def _run(self) -> None:
        try:
            self._model = self._load()
        except BaseException as problem:
            self._ready.set_exception(problem)
            return
        self._intake.open(self._model.prepare)
        self._ready.set_result(None)
        try:
            while self._intake.wait(busy=bool(self._running)):
                self._sweep()
                self._admit()
                self._step()
                self._retire()
        except DeviceLost as lost:
            logger.critical("the device is lost, and this engine with it", exc_info=lost)
            self._end_all(lost.suspects)
        finally:
            self._end_all()
            self._running = []

    def _sweep(self) -> None:
        """Drop what was cancelled or has expired since the last step."""
        now = self._clock()
        unwanted = [running for running in self._running if running.ticket.unwanted(now)]
        self._running = [running for running in self._running if running not in unwanted]
        for ticket in [*self._intake.drop(now), *(running.ticket for running in unwanted)]:
            why = "cancelled" if ticket.cancelled else "expired"
            logger.info("edit %s %s after %.3f s", ticket.request.request_id, why, now - ticket.submitted_at)
            self._outbox.failed(ticket, _why_dropped(ticket))

    def _admit(self) -> None:
        """Take waiting edits in their order while the pack stays within the budget, and encode them together."""
        room = self._budget.tokens - num_tokens(self._running)
        self._admitted = self._intake.take(room, at_least=0 if self._running else 1)
        if self._admitted:
            self._together(self._begin, self._admitted)
            self._admitted = []

    def _begin(self, edits: Sequence[Waiting]) -> Failed | None:
        began = self._clock()
        prepared = [edit.prepared for edit in edits]
        drafts = self._watchdog.attempt("encoding", edits, lambda: self._model.begin(prepared))
        if isinstance(drafts, Failed):
            return drafts
        for edit, draft in zip(edits, drafts, strict=True):
            running = as_running(edit.ticket, draft, began, self._clock())
            self._running.append(running)
            self._report(running)
        return None

    def _step(self) -> None:
        """One step for every edit: in one pack, unless the budget was cut below what runs."""
        left, due = list(self._running), {running: running.num_done for running in self._running}
        while left:
            pack = first_within(left, self._budget.tokens, at_least=1)
            del left[: len(pack)]
            self._together(partial(self._step_pack, due), pack)
        for running in self._running:
            self._report(running)

    def _step_pack(self, due: dict[Running, int], pack: Sequence[Running]) -> Failed | None:
        # A pack that failed near its end has moved some of its edits, which are not to be moved again.
        pack = [running for running in pack if running.num_done == due[running]]
        if not pack:
            return None
        drafts = [running.draft for running in pack]
        failed = self._watchdog.attempt("a step", pack, lambda: self._model.step(drafts))
        if failed is None:
            self._count_step(pack)
        return failed

    def _count_step(self, pack: Sequence[Running]) -> None:
        if len(pack) > 1:
            for running in pack:
                running.timings = replace(running.timings, shared_steps=running.timings.shared_steps + 1)
        self._stats = replace(
            self._stats,
            num_steps=self._stats.num_steps + 1,
            num_edit_steps=self._stats.num_edit_steps + len(pack),
            max_pack=max(self._stats.max_pack, len(pack)),
            num_step_tokens=self._stats.num_step_tokens + num_tokens(pack),
        )

    def _report(self, running: Running) -> None:
        if running.ticket.on_progress is None:
            return
        draft = running.draft
        preview = self._preview(running) if draft.index in running.previews_at else None
        self._outbox.progress(running.ticket, Progress(draft.index, draft.schedule.num_steps), preview)

    def _preview(self, running: Running) -> Pixels | None:
        pixels = self._watchdog.attempt("a preview", [running], lambda: self._model.preview(running.draft))
        return None if isinstance(pixels, Failed) else pixels

    def _retire(self) -> None:
        for running in [running for running in self._running if running.draft.done]:
            self._together(self._finish, [running])

    def _finish(self, edits: Sequence[Running]) -> Failed | None:
        (running,) = edits
        began = self._clock()
        pixels = self._watchdog.attempt("decoding", edits, lambda: self._model.finish(running.draft))
        if isinstance(pixels, Failed):
            return pixels
        timings = replace(running.timings, steps_s=began - running.began_steps_at, decode_s=self._clock() - began)
        self._outbox.finished(running.ticket, pixels, timings, running.draft.tokens)
        self._running.remove(running)
        return None

    def _together(self, work: Callable[[Sequence[E]], Failed | None], edits: Sequence[E]) -> None:
        """Do something for several edits at once; where that fails, for each alone, so that only the guilty fails. With
        memory made free, even a single edit has a second try."""
        failed = work(edits)
        if failed is None:
            return
        if failed.fault is Fault.MEMORY:
            self._make_room(edits)
        elif len(edits) == 1:
            self._fail(edits[0], failed)
            return
        for edit in edits:
            if (own := work([edit])) is not None:
                self._fail(edit, own)

    def _make_room(self, edits: Sequence[E]) -> None:
        # One that is too large by itself tells nothing about packs.
        if len(edits) > 1:
            self._budget.cut(num_tokens(edits))
            logger.warning("packs have at most %d tokens for now: memory ran out", self._budget.tokens)
        self._watchdog.attempt("freeing memory", edits, self._model.free)

    def _fail(self, edit: Waiting | Running, failed: Failed) -> None:
        self._outbox.failed(edit.ticket, failed.told)
        if isinstance(edit, Running):
            self._running.remove(edit)


def _why_dropped(ticket: Ticket) -> EditCancelled | DeadlineExceeded:
    """Why an unwanted edit was dropped."""
    if ticket.cancelled or ticket.timeout_s is None:
        return EditCancelled("The edit was cancelled.")
    return DeadlineExceeded(f"The edit was not done within its {ticket.timeout_s:.1f} s.")
