"""Ends edits: compresses pictures beside the engine thread, sets the tickets' futures, and counts the ends."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from serve_app.editor.engine.failures import service_error
from serve_app.editor.engine.ticket import Ticket
from serve_app.edits.images import encode_picture, resample
from serve_app.edits.request import EditRequest, EditResult, EditTimings, Pixels, Progress, TokenCounts
from serve_app.errors import DeadlineExceeded, EditCancelled, ServiceError

logger = logging.getLogger(__name__)

_COUNTERS = {EditResult: "completed", EditCancelled: "cancelled", DeadlineExceeded: "expired"}


class Outbox:
    """Thread-safe. The first end of a ticket counts; later ones are dropped."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._compressor = ThreadPoolExecutor(1, thread_name_prefix="compress")
        self._lock = threading.Lock()
        self._ends: Counter[str] = Counter()

    @property
    def ends(self) -> dict[str, int]:
        """Counts of edits by their end, by the names of EngineStats."""
        with self._lock:
            return dict(self._ends)

    def progress(self, ticket: Ticket, progress: Progress, preview: Pixels | None) -> None:
        """Report a step to the ticket, with the preview's pixels where one is due."""
        if not ticket.ended:
            self._compressor.submit(self._report, ticket, progress, preview)

    def finished(self, ticket: Ticket, pixels: Pixels, timings: EditTimings, tokens: TokenCounts) -> None:
        """Compress the picture and end the ticket with it."""
        if not ticket.ended:
            self._compressor.submit(self._compress, ticket, pixels, timings, tokens)

    def failed(self, ticket: Ticket, problem: Exception) -> None:
        """End the ticket with an error. The details of an unexpected exception go to the log only."""
        if not isinstance(problem, ServiceError):
            logger.error("edit %s failed in the model", ticket.request.request_id, exc_info=problem)
        error = service_error(problem)
        if self._claim(ticket, type(error)):
            ticket.future.set_exception(error)

    def close(self) -> None:
        """Finish all work that was submitted."""
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
            logger.info("edit %s done: %s%s", ticket.request.request_id, _describe(timings), _loras(ticket.request))
            ticket.future.set_result(EditResult(data, ticket.request.output.media_type, timings, tokens))

    def _report(self, ticket: Ticket, progress: Progress, preview: Pixels | None) -> None:
        if ticket.on_progress is None:
            return
        try:
            encoded = None if preview is None else _encode(preview, ticket)
            ticket.on_progress(replace(progress, preview=encoded))
        except Exception:
            logger.exception("could not report progress of edit %s", ticket.request.request_id)

    def _claim(self, ticket: Ticket, end: type[EditResult | ServiceError]) -> bool:
        """Decide and count a ticket's end. False where it has one already: an engine thread that was stuck may resume
        after its edits were failed."""
        with self._lock:
            if ticket.ended:
                return False
            ticket.ended = True
            self._ends[_COUNTERS.get(end, "failed")] += 1
            return True


def _encode(pixels: Pixels, ticket: Ticket) -> bytes:
    request = ticket.request
    return encode_picture(resample(pixels, request.size.final), request.output, ticket.xmp)


def _loras(request: EditRequest) -> str:
    """The adapters that are not fused, for the log line."""
    named = ",".join(f"{lora.name}:{lora.weight:g}" for lora in request.loras)
    return f" loras={named}" if named else ""


def _describe(timings: EditTimings) -> str:
    """The log line's figures, seconds by stage."""
    return (
        f"queue_s={timings.queue_s:.3f} encode_s={timings.encode_s:.3f} steps_s={timings.steps_s:.3f} "
        f"paused_s={timings.paused_s:.3f} decode_s={timings.decode_s:.3f} compress_s={timings.compress_s:.3f} "
        f"num_steps={timings.num_steps} shared_steps={timings.shared_steps}"
    )
