"""The ends of edits: pictures compressed beside the engine thread, tickets told, ends counted."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from serve_app.editor.engine.failures import as_told
from serve_app.editor.engine.ticket import Ticket, describe
from serve_app.edits.images import encode_picture, resample
from serve_app.edits.request import EditResult, EditTimings, Pixels, Progress, TokenCounts
from serve_app.errors import DeadlineExceeded, EditCancelled, ServiceError

logger = logging.getLogger(__name__)

_COUNTERS = {EditResult: "completed", EditCancelled: "cancelled", DeadlineExceeded: "expired"}


class Outbox:
    """Any thread may hand edits in; each ticket is told its end once: whatever comes after it is dropped."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._compressor = ThreadPoolExecutor(1, thread_name_prefix="compress")
        self._lock = threading.Lock()
        self._ends: Counter[str] = Counter()

    @property
    def ends(self) -> dict[str, int]:
        """How many edits ended how, by the names of EngineStats."""
        with self._lock:
            return dict(self._ends)

    def progress(self, ticket: Ticket, progress: Progress, preview: Pixels | None) -> None:
        """Tell a step, with a preview's pixels where one was due."""
        if not ticket.ended:
            self._compressor.submit(self._tell_progress, ticket, progress, preview)

    def finished(self, ticket: Ticket, pixels: Pixels, timings: EditTimings, tokens: TokenCounts) -> None:
        """Compress the picture and tell the ticket."""
        if not ticket.ended:
            self._compressor.submit(self._compress, ticket, pixels, timings, tokens)

    def failed(self, ticket: Ticket, problem: Exception) -> None:
        """Tell the ticket. What is not ours to tell goes to the log alone."""
        if not isinstance(problem, ServiceError):
            logger.error("edit %s failed in the model", ticket.request.request_id, exc_info=problem)
        told = as_told(problem)
        if self._claim(ticket, type(told)):
            ticket.future.set_exception(told)

    def close(self) -> None:
        """Finish what was handed in."""
        self._compressor.shutdown()

    def _compress(self, ticket: Ticket, pixels: Pixels, timings: EditTimings, tokens: TokenCounts) -> None:
        began = self._clock()
        try:
            data = _encode(pixels, ticket)
        except Exception as problem:
            self.failed(ticket, problem)
            return
        timings = replace(timings, compress_s=self._clock() - began)
        if self._claim(ticket, EditResult):
            logger.info("edit %s done: %s", ticket.request.request_id, describe(timings))
            ticket.future.set_result(EditResult(data, ticket.request.output.media_type, timings, tokens))

    def _tell_progress(self, ticket: Ticket, progress: Progress, preview: Pixels | None) -> None:
        if ticket.on_progress is None:
            return
        try:
            encoded = None if preview is None else _encode(preview, ticket)
            ticket.on_progress(replace(progress, preview=encoded))
        except Exception:
            logger.exception("progress of edit %s could not be told", ticket.request.request_id)

    def _claim(self, ticket: Ticket, end: type[EditResult | ServiceError]) -> bool:
        """Decide and count a ticket's end; False where it has one: a thread that was given up as stuck may wake."""
        with self._lock:
            if ticket.ended:
                return False
            ticket.ended = True
            self._ends[_COUNTERS.get(end, "failed")] += 1
            return True


def _encode(pixels: Pixels, ticket: Ticket) -> bytes:
    request = ticket.request
    return encode_picture(resample(pixels, request.size.final), request.output, ticket.xmp)
