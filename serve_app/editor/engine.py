"""The engine: one thread that admits waiting edits, steps all running ones as a pack, and retires the finished.

Because a step is the unit, an edit joins at the next step and a cancelled one leaves at the next step.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

from serve_app.editor.model import Draft
from serve_app.editor.ticket import EngineStats, Ticket, describe
from serve_app.edits.images import encode_picture, resample
from serve_app.edits.request import EditJob, EditResult, EditTimings, Pictures, Pixels
from serve_app.errors import EditCancelled, EditFailed, Overloaded, ServiceError, ServiceUnavailable

logger = logging.getLogger(__name__)


class StepModel(Protocol):
    """What the engine drives; EditModel is the real one. All calls come from the engine thread."""

    def begin(self, job: EditJob, pictures: Pictures) -> Draft: ...
    def step(self, drafts: Sequence[Draft]) -> None: ...
    def finish(self, draft: Draft) -> Pixels: ...


@dataclass
class _Running:
    ticket: Ticket
    draft: Draft
    timings: EditTimings
    began_steps_at: float


class Engine:
    """Runs edits packed.

    Args:
        load: makes the model; called on the engine thread, which alone ever touches it.
        max_pack_tokens: budget of picture tokens in one step; an edit above it runs alone.
        max_waiting: edits that may wait; one more is refused.
    """

    def __init__(self, load: Callable[[], StepModel], *, max_pack_tokens: int, max_waiting: int) -> None:
        self._load = load
        self._max_pack_tokens = max_pack_tokens
        self._max_waiting = max_waiting
        self._work = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._running: list[_Running] = []
        self._stats = EngineStats()
        self._ready: Future[None] = Future()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # Beside the engine thread, so that it never compresses a picture itself.
        self._compressor = ThreadPoolExecutor(1, thread_name_prefix="compress")

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
            if len(self._waiting) >= self._max_waiting:
                raise Overloaded(f"{self._max_waiting} edits are waiting already; try again later.")
            self._waiting.append(ticket)
            self._work.notify()

    def close(self) -> None:
        """Fail what waits and runs, and end the thread."""
        with self._work:
            self._closing = True
            self._work.notify()
        self._thread.join()
        self._compressor.shutdown()

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def stats(self) -> EngineStats:
        with self._work:
            return replace(self._stats, waiting=len(self._waiting), running=len(self._running))

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
            self._fail_all(ServiceUnavailable("The editor stopped before this edit was done; try again."))

    def _wait_for_work(self) -> bool:
        with self._work:
            self._work.wait_for(lambda: self._closing or self._waiting or self._running)
            return not self._closing

    def _sweep(self) -> None:
        """Drop what was cancelled since the last step."""
        with self._work:
            dropped = [ticket for ticket in self._waiting if ticket.cancelled]
            dropped += [running.ticket for running in self._running if running.ticket.cancelled]
            self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)
            self._running = [running for running in self._running if not running.ticket.cancelled]
        for ticket in dropped:
            self._settle(ticket, EditCancelled("The edit was cancelled."))

    def _admit(self) -> None:
        """First come, first served: take waiting edits while the pack stays within the budget."""
        while (ticket := self._next_admissible()) is not None:
            admitted_at = time.monotonic()
            try:
                draft = self._model.begin(ticket.job, ticket.pictures)
            except Exception as problem:
                self._fail(ticket, problem)
                continue
            now = time.monotonic()
            timings = EditTimings(
                queue_s=admitted_at - ticket.submitted_at,
                encode_s=now - admitted_at,
                steps_s=0.0,
                decode_s=0.0,
                compress_s=0.0,
                num_steps=draft.schedule.num_steps,
                shared_steps=0,
            )
            self._running.append(_Running(ticket, draft, timings, began_steps_at=now))

    def _next_admissible(self) -> Ticket | None:
        with self._work:
            if not self._waiting:
                return None
            tokens = sum(running.ticket.num_tokens for running in self._running) + self._waiting[0].num_tokens
            fits = tokens <= self._max_pack_tokens or not self._running
            return self._waiting.popleft() if fits else None

    def _step(self) -> None:
        pack = list(self._running)
        if not pack:
            return
        try:
            self._model.step([running.draft for running in pack])
        except Exception as problem:
            self._step_apart(pack, problem)
        self._count_step(pack)

    def _step_apart(self, pack: list[_Running], problem: Exception) -> None:
        """A pack failed as a whole: step each edit alone, so that only the guilty one fails."""
        logger.warning("a packed step of %d edits failed, stepping them apart: %r", len(pack), problem)
        for running in pack:
            try:
                self._model.step([running.draft])
            except Exception as own_problem:
                self._running.remove(running)
                self._fail(running.ticket, own_problem)

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

    def _retire(self) -> None:
        for running in [running for running in self._running if running.draft.done]:
            self._running.remove(running)
            began = time.monotonic()
            try:
                pixels = self._model.finish(running.draft)
            except Exception as problem:
                self._fail(running.ticket, problem)
                continue
            timings = replace(
                running.timings, steps_s=began - running.began_steps_at, decode_s=time.monotonic() - began
            )
            self._compressor.submit(self._compress, running.ticket, pixels, timings)

    def _fail(self, ticket: Ticket, problem: Exception) -> None:
        if not isinstance(problem, ServiceError):
            logger.error("edit %s failed in the model", ticket.job.request_id, exc_info=problem)
            problem = EditFailed("The edit failed inside the model; the server's log has the reason.")
        self._settle(ticket, problem)

    def _fail_all(self, problem: ServiceError) -> None:
        with self._work:
            tickets = [running.ticket for running in self._running] + list(self._waiting)
            self._running.clear()
            self._waiting.clear()
        for ticket in tickets:
            self._settle(ticket, problem)

    # The compressor thread, and the ends of an edit

    def _compress(self, ticket: Ticket, pixels: Pixels, timings: EditTimings) -> None:
        began = time.monotonic()
        try:
            data = encode_picture(resample(pixels, ticket.job.size.final), ticket.job.output)
        except Exception as problem:
            self._fail(ticket, problem)
            return
        timings = replace(timings, compress_s=time.monotonic() - began)
        logger.info("edit %s done: %s", ticket.job.request_id, describe(timings))
        self._settle(ticket, EditResult(data, ticket.job.output.media_type, timings))

    def _settle(self, ticket: Ticket, end: EditResult | ServiceError) -> None:
        with self._work:
            if isinstance(end, EditCancelled):
                self._stats = replace(self._stats, cancelled=self._stats.cancelled + 1)
            elif isinstance(end, ServiceError):
                self._stats = replace(self._stats, failed=self._stats.failed + 1)
            else:
                self._stats = replace(self._stats, completed=self._stats.completed + 1)
        if isinstance(end, ServiceError):
            ticket.future.set_exception(end)
        else:
            ticket.future.set_result(end)
