"""The rewrites that wait for the model, which rewrites several at once."""

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from serve_app.config import RewriterSettings
from serve_app.edits.request import Pictures, Rewrite, RewriteRequest
from serve_app.errors import ServiceUnavailable
from serve_app.rewriter.instructions import FAILED
from serve_app.rewriter.model import RewriterModel, Row
from serve_app.weights.faults import Fault, fault_of

logger = logging.getLogger(__name__)

STUCK_TIMEOUTS = 10
"""A batch, which ends by itself after `timeout_s`, is stuck after so many times that."""


@dataclass(eq=False)
class _Waiting:
    """A rewrite whose caller waits for `ended`. The model's thread sets `row`, and reads whether it is wanted."""

    request: RewriteRequest
    pictures: Pictures
    ended: asyncio.Future[Rewrite] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    row: Row | None = None

    @property
    def is_wanted(self) -> bool:
        return not self.ended.cancelled()


class RewriteBatches:
    """Runs waiting rewrites in batches, in the order of their arrival; those that arrive meanwhile are in the next one.
    A caller leaves by being cancelled: its rewrite is skipped, or ends at its next token. Lives on one event loop.

    Args:
        thread: the one thread that owns the model.
    """

    def __init__(self, model: RewriterModel, settings: RewriterSettings, thread: Executor) -> None:
        self._model = model
        self._settings = settings
        self._thread = thread
        self._waiting: dict[_Waiting, None] = {}  # in the order of arrival
        self._is_full = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._device_failed = False
        self._began: float | None = None

    def check_health(self) -> None:
        """
        Raises:
            ServiceUnavailable: the device is lost to this process, or a batch has not ended for long.
        """
        if self._device_failed:
            raise ServiceUnavailable("The rewriter's device failed.")
        if self._began is not None and time.monotonic() - self._began > STUCK_TIMEOUTS * self._settings.timeout_s:
            raise ServiceUnavailable("The rewriter's model does not answer.")

    async def rewrite(self, request: RewriteRequest, pictures: Pictures) -> Rewrite:
        """A better instruction, or the reason why there is none."""
        waiting = _Waiting(request, pictures)
        self._waiting[waiting] = None
        if len(self._waiting) >= self._settings.max_batch_size:
            self._is_full.set()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        try:
            return await waiting.ended
        finally:
            self._waiting.pop(waiting, None)

    async def _run(self) -> None:
        while self._waiting:
            await self._filled()
            first = list(islice(self._waiting, self._settings.max_batch_size))
            self._began = time.monotonic()
            ended = await asyncio.get_running_loop().run_in_executor(self._thread, self._run_batch, first)
            self._began = None
            for waiting, rewrite in ended.items():
                self._waiting.pop(waiting, None)
                if waiting.is_wanted:
                    waiting.ended.set_result(rewrite)

    async def _filled(self) -> None:
        """Wait a moment for others that arrive together with the first, unless there is a batch of them already."""
        if len(self._waiting) < self._settings.max_batch_size:
            self._is_full.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_full.wait(), self._settings.batch_wait_timeout_s)

    def _run_batch(self, first: Sequence[_Waiting]) -> dict[_Waiting, Rewrite]:
        """Rewrite the first of these, as many as fit into one batch; on the model's thread."""
        ended: dict[_Waiting, Rewrite] = {}
        batch: dict[_Waiting, Row] = {}
        for waiting in first:
            row = self._prepared(waiting)
            if row is None:
                ended[waiting] = FAILED
            elif batch and not self._model.fits([*batch.values(), row]):
                break
            elif waiting.is_wanted:
                batch[waiting] = row
        return ended | self._rewritten(batch)

    def _prepared(self, waiting: _Waiting) -> Row | None:
        """Its row, which it keeps until there is place for it; None if that failed."""
        ended = waiting.ended  # The row refers to this alone: in a cycle, its tensors would outlive it.
        try:
            if waiting.row is None:
                waiting.row = self._model.prepare(
                    waiting.request.prompt, waiting.pictures, lambda: not ended.cancelled()
                )
            return waiting.row
        except Exception:
            logger.exception("rewriting failed for %s", waiting.request.request_id)
            return None

    def _rewritten(self, batch: dict[_Waiting, Row]) -> dict[_Waiting, Rewrite]:
        if not batch:
            return {}
        try:
            return dict(zip(batch, self._model.rewrite(list(batch.values())), strict=True))
        except Exception as problem:
            self._device_failed = self._device_failed or fault_of(problem) is Fault.DEVICE
            if len(batch) == 1:
                logger.exception("rewriting failed for %s", ", ".join(each.request.request_id for each in batch))
                return dict.fromkeys(batch, FAILED)
            logger.warning("a batch of %d rewrites failed; they run one by one", len(batch), exc_info=True)
        # Outside the handler: the exception's frames hold the batch's tensors.
        ended: dict[_Waiting, Rewrite] = {}
        for waiting, row in batch.items():
            if waiting.is_wanted:
                ended |= self._rewritten({waiting: row})
        return ended
