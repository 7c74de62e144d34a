"""The engine: one thread that runs step after step, each with the edits that the scheduler chooses.

Edits join and leave between two steps. A cancelled or expired one leaves at the next step, and the tokens that it frees
are used in that same step. One thread beside the engine thread prepares edits (tokens, hashes, noise) and one
compresses pictures, so that the engine thread waits for neither.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Protocol

from serve_app.config import Scheduling
from serve_app.editor.engine.edit import Edit, first_within, num_tokens, preview_steps
from serve_app.editor.engine.failures import DeviceLost, Failed, device_failed
from serve_app.editor.engine.intake import Intake, stopped
from serve_app.editor.engine.outbox import Outbox
from serve_app.editor.engine.scheduler import Scheduler
from serve_app.editor.engine.stats import EngineStats
from serve_app.editor.engine.ticket import Ticket
from serve_app.editor.engine.watchdog import Watchdog
from serve_app.editor.model.cache import CacheStats
from serve_app.editor.model.edit_model import Draft, Prepared
from serve_app.edits.request import EditRequest, Pictures, Pixels, Progress
from serve_app.errors import DeadlineExceeded, EditCancelled, ServiceUnavailable
from serve_app.weights.faults import Fault

logger = logging.getLogger(__name__)


class StepModel(Protocol):
    """The model as the engine calls it; `EditModel` implements it. The engine thread makes all calls but `prepare` and
    `cache_stats`."""

    def prepare(self, request: EditRequest, pictures: Pictures) -> Prepared: ...
    def begin(self, edits: Sequence[Prepared]) -> list[Draft]: ...
    def step(self, drafts: Sequence[Draft]) -> None: ...
    def preview(self, draft: Draft) -> Pixels: ...
    def finish(self, draft: Draft) -> Pixels: ...
    def free(self) -> None: ...

    @property
    def cache_stats(self) -> dict[str, CacheStats]: ...


class Engine:
    """Runs edits in packs.

    An edit that fails does not affect the others. After an out-of-memory error, packs are smaller for a while. If the
    device is lost or one call of the model takes too long, the engine ends: the edits that may be the cause fail with
    EditFailed, all others with ServiceUnavailable, since another replica can still run them.

    Args:
        load: makes the model; called on the engine thread, the only one that runs it.
        max_pack_tokens: picture tokens of one step; an edit above it runs alone.
        max_waiting: edits that may wait; one more is refused.
        max_paused: edits that have begun and may be left out of a step.
        wedged_after_s: the longest that one call of the model may take; loading may take longer.
        clock: seconds, for deadlines and timings.
    """

    def __init__(
        self,
        load: Callable[[], StepModel],
        *,
        max_pack_tokens: int,
        max_waiting: int,
        max_paused: int = 16,
        scheduling: Scheduling = "shortest",
        wedged_after_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._clock = clock
        self._outbox = Outbox(clock)
        self._scheduler = Scheduler(max_pack_tokens, max_paused, scheduling, clock)
        self._intake = Intake(self._scheduler, max_waiting, self._outbox, clock)
        self._watchdog = Watchdog(wedged_after_s, clock)
        self._stats = EngineStats()
        self._ready: Future[None] = Future()
        self._closing = False
        self._pack: list[Edit] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # Any thread

    def start(self) -> None:
        """Start the thread and return when the model is loaded; raises what loading raised."""
        self._thread.start()
        self._ready.result()

    def submit(self, ticket: Ticket) -> None:
        """Queue an edit; `ticket.future` ends with its result or error.

        Raises:
            Overloaded: the queue is full.
            ServiceUnavailable: the engine is closing or has ended.
        """
        self._intake.submit(ticket)

    def close(self, timeout_s: float = 10.0) -> None:
        """Fail all edits and end the threads. A thread that is stuck is left behind after the timeout, or at once where
        `check_health` has found it stuck."""
        join_timeout_s = 0.0 if self._closing else timeout_s
        self._refuse()
        self._thread.join(join_timeout_s)
        self._end_all()
        self._intake.join()
        self._outbox.close()

    def check_health(self) -> None:
        """Cheap, and safe on an event loop. Fails the edits of a stuck engine: before Serve replaces a replica, it lets
        the replica's requests end, and these never would.

        Raises:
            ServiceUnavailable: the engine cannot go on.
        """
        stuck = self._watchdog.overdue
        if stuck is not None and not self._closing:
            logger.critical("the engine has been stuck in %s for %.0f s", stuck.name, self._clock() - stuck.began)
            self._end_all(stuck.suspects)
        if not self.alive:
            raise ServiceUnavailable("The engine has died or is stuck.")

    @property
    def alive(self) -> bool:
        """Whether it can run edits."""
        return self._thread.is_alive() and not self._closing and self._watchdog.overdue is None

    @property
    def stats(self) -> EngineStats:
        return replace(
            self._stats,
            preparing=self._intake.num_preparing,
            waiting=self._scheduler.num_waiting,
            running=len(self._pack),
            paused=sum(edit not in self._pack for edit in self._scheduler.begun),
            token_budget=self._scheduler.budget.tokens,
            **self._outbox.ends,
        )

    @property
    def cache_stats(self) -> dict[str, CacheStats]:
        """Look-ups in the model's caches."""
        return self._model.cache_stats

    def _refuse(self) -> None:
        """Refuse new edits, and fail those that wait."""
        self._closing = True
        self._intake.close()
        for edit in self._scheduler.close():
            if edit not in self._pack:
                self._outbox.failed(edit.ticket, stopped())

    def _end_all(self, suspects: Sequence[Ticket] = ()) -> None:
        """Fail every edit; the suspects with an error after which they are not run again. New edits are refused first,
        so that a caller that sees a failure finds the engine dead."""
        self._refuse()
        for edit in {*self._pack, *self._scheduler.begun}:
            self._outbox.failed(edit.ticket, device_failed() if edit.ticket in suspects else stopped())

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
            while self._scheduler.wait():
                self._sweep()
                self._step()
                self._retire()
        except DeviceLost as lost:
            logger.critical("the device is lost; the engine ends", exc_info=lost)
            self._end_all(lost.suspects)
        finally:
            self._end_all()
            self._pack = []

    def _sweep(self) -> None:
        """End the edits that were cancelled or have expired since the last step."""
        for edit in self._scheduler.sweep():
            self._forget(edit)
            ticket = edit.ticket
            why = "cancelled" if ticket.cancelled else "expired"
            waited_s = self._clock() - ticket.submitted_at
            logger.info("edit %s %s after %.3f s", ticket.request.request_id, why, waited_s)
            self._outbox.failed(ticket, _why_dropped(ticket))

    def _step(self) -> None:
        """Run one step of the edits whose turn it is. Those that have not begun are encoded first, all in one batch."""
        pack = self._pack = self._scheduler.next_pack()
        if new := [edit for edit in pack if edit.draft is None]:
            self._together(self._begin, new)
        # Running out of memory while they were encoded has cut the budget.
        self._pack = first_within([edit for edit in pack if edit.draft is not None], self._scheduler.budget.tokens)
        for edit in self._scheduler.begun:
            if edit.is_running and edit not in self._pack:
                edit.is_running = False
                self._report(edit)
        if due := {edit: edit.num_done for edit in self._pack}:
            self._together(partial(self._run_step, due), list(due))
        for edit in self._pack:
            self._report(edit)

    def _begin(self, edits: Sequence[Edit]) -> Failed | None:
        began = self._clock()
        prepared = [edit.prepared for edit in edits if edit.prepared is not None]
        drafts = self._watchdog.attempt("encoding", edits, lambda: self._model.begin(prepared))
        if isinstance(drafts, Failed):
            return drafts
        now = self._clock()
        for edit, draft in zip(edits, drafts, strict=True):
            edit.begin(draft, began, now)
            self._report(edit)
        return None

    def _run_step(self, due: dict[Edit, int], edits: Sequence[Edit]) -> Failed | None:
        # A call that failed near its end has moved some of its edits: they must not be moved again.
        edits = [edit for edit in edits if edit.num_done == due[edit]]
        if not edits:
            return None
        began = self._clock()
        drafts = [edit.started for edit in edits]
        failed = self._watchdog.attempt("a step", edits, lambda: self._model.step(drafts))
        if failed is not None:
            return failed
        now = self._clock()
        self._count_step(edits, now - began)
        for edit in edits:
            edit.count_step(began, now, is_shared=len(edits) > 1)
        return None

    def _count_step(self, pack: Sequence[Edit], seconds: float) -> None:
        self._scheduler.count_step(pack, seconds)
        self._stats = replace(
            self._stats,
            num_steps=self._stats.num_steps + 1,
            num_edit_steps=self._stats.num_edit_steps + len(pack),
            num_step_tokens=self._stats.num_step_tokens + num_tokens(pack),
        )

    def _report(self, edit: Edit) -> None:
        if edit.ticket.on_progress is None:
            return
        due = preview_steps(edit.ticket.request.num_previews, edit.timings.num_steps)
        preview = self._preview(edit) if edit.is_running and edit.num_done in due else None
        progress = Progress(edit.num_done, edit.timings.num_steps, is_paused=not edit.is_running)
        self._outbox.progress(edit.ticket, progress, preview)

    def _preview(self, edit: Edit) -> Pixels | None:
        pixels = self._watchdog.attempt("a preview", [edit], lambda: self._model.preview(edit.started))
        return None if isinstance(pixels, Failed) else pixels

    def _retire(self) -> None:
        """Decode the edits that have done their last step."""
        for edit in [edit for edit in self._pack if edit.draft is not None and edit.draft.done]:
            self._together(self._finish, [edit])

    def _finish(self, edits: Sequence[Edit]) -> Failed | None:
        (edit,) = edits
        began = self._clock()
        pixels = self._watchdog.attempt("decoding", edits, lambda: self._model.finish(edit.started))
        if isinstance(pixels, Failed):
            return pixels
        timings = replace(edit.timings, decode_s=self._clock() - began)
        self._outbox.finished(edit.ticket, pixels, timings, edit.started.tokens)
        self._forget(edit)
        return None

    def _together(self, work: Callable[[Sequence[Edit]], Failed | None], edits: Sequence[Edit]) -> None:
        """Do something for several edits at once. Where that fails, do it for each alone, so that only the edits at
        fault fail. After an out-of-memory error memory is freed, and a single edit is tried again, too."""
        failed = work(edits)
        if failed is None:
            return
        if failed.fault is Fault.MEMORY:
            self._free_memory(edits)
        elif len(edits) == 1:
            self._fail(edits[0], failed)
            return
        for edit in edits:
            if (own := work([edit])) is not None:
                self._fail(edit, own)

    def _free_memory(self, edits: Sequence[Edit]) -> None:
        # A single edit that is too large says nothing about packs.
        if len(edits) > 1:
            self._scheduler.budget.cut(num_tokens(edits))
            logger.warning("out of memory: packs have at most %d tokens for now", self._scheduler.budget.tokens)
        self._watchdog.attempt("freeing memory", edits, self._model.free)

    def _fail(self, edit: Edit, failed: Failed) -> None:
        self._outbox.failed(edit.ticket, failed.error)
        self._forget(edit)

    def _forget(self, edit: Edit) -> None:
        self._scheduler.remove(edit)
        self._pack = [each for each in self._pack if each is not edit]


def _why_dropped(ticket: Ticket) -> EditCancelled | DeadlineExceeded:
    """Why an unwanted edit was dropped."""
    if ticket.cancelled or ticket.timeout_s is None:
        return EditCancelled("The edit was cancelled.")
    return DeadlineExceeded(f"The edit was not done within its {ticket.timeout_s:.1f} s.")
