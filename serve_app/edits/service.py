"""The steps of one edit: rewrite the prompt if requested, prepend the camera tokens, draw, collect. No Ray."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar

from serve_app.edits.camera import camera_prompt
from serve_app.edits.request import (
    EditOutcome,
    EditRequest,
    EditResult,
    Progress,
    Rewrite,
    RewriteRequest,
    SharedPictures,
)
from serve_app.errors import DeadlineExceeded, ServiceError

logger = logging.getLogger(__name__)

T = TypeVar("T")

OnProgress = Callable[[Progress], None]
"""Receives the steps of an edit as they finish; must not block."""


class EditorPort(Protocol):
    async def edit(
        self, request: EditRequest, pictures: SharedPictures, on_progress: OnProgress, timeout_s: float | None = None
    ) -> EditResult:
        """Draw one edit whose prompt is final, camera tokens included.

        Args:
            timeout_s: seconds after which it is dropped at its next step; None: never.

        Raises:
            ServiceError: the edit failed.
        """


class RewriterPort(Protocol):
    async def rewrite(self, request: RewriteRequest, pictures: SharedPictures) -> Rewrite: ...


@dataclass(frozen=True)
class Deadline:
    """When a request must be done.

    Attributes:
        timeout_s: seconds from the arrival of its whole body; None: no limit.
        until: the deadline on the event loop's clock; None: no limit.
    """

    timeout_s: float | None = None
    until: float | None = None

    @classmethod
    def after(cls, timeout_s: float | None) -> Self:
        """The deadline of a request whose body has been read now."""
        return cls(timeout_s, None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s)

    @property
    def left_s(self) -> float | None:
        """Seconds that are left, at least 0; None without a limit."""
        return None if self.until is None else max(0.0, self.until - asyncio.get_running_loop().time())

    @property
    def spent_s(self) -> float:
        """Seconds since the request's body had been read; 0 without a limit."""
        return 0.0 if self.timeout_s is None or self.left_s is None else self.timeout_s - self.left_s

    def later(self, margin_s: float) -> "Deadline":
        """The same deadline with a margin, for callers that wait for work with this one."""
        return self if self.until is None else replace(self, until=self.until + margin_s)

    async def bound(self, work: Awaitable[T]) -> T:
        """The result of `work`, which is cancelled at the deadline.

        Raises:
            DeadlineExceeded: it was not finished in time.
        """
        try:
            async with asyncio.timeout_at(self.until) as limit:
                return await work
        except TimeoutError as problem:
            if self.timeout_s is not None and limit.expired():
                raise DeadlineExceeded(too_late(self.timeout_s)) from problem
            raise


def too_late(timeout_s: float) -> str:
    return f"The request was not done within {timeout_s:g} s (timeout_s)."


class EditService:
    """Runs edits through an editor and, where requested, a rewriter."""

    def __init__(self, editor: EditorPort, rewriter: RewriterPort | None) -> None:
        self._editor = editor
        self._rewriter = rewriter

    async def run(
        self,
        request: EditRequest,
        pictures: SharedPictures,
        on_progress: OnProgress = lambda progress: None,
        deadline: Deadline = Deadline(),
    ) -> EditOutcome:
        """Run one edit from its request to its encoded picture. If the task is cancelled, so is the edit.

        Raises:
            DeadlineExceeded: it was not finished in time.
            ServiceError: the edit failed. If the rewriter fails, the edit uses the client's prompt.
        """
        rewrite = await deadline.bound(self.rewrite(request, pictures, on_progress))
        return await deadline.bound(self.draw(request, rewrite, pictures, on_progress, deadline.left_s))

    async def rewrite(self, request: EditRequest, pictures: SharedPictures, on_progress: OnProgress) -> Rewrite | None:
        """The rewriter's prompt, or the reason why there is none; None if no rewrite was requested."""
        if not request.rewrite_prompt:
            return None
        on_progress(Progress(0, request.sampling.num_inference_steps))
        if self._rewriter is None:
            return Rewrite(None, "this server has no rewriter")
        if not request.prompt.strip():
            return Rewrite(None, "there is no prompt to rewrite")
        try:
            return await self._rewriter.rewrite(RewriteRequest(request.request_id, request.prompt), pictures)
        except ServiceError as problem:
            logger.warning("no rewriting for %s: %s", request.request_id, problem)
            return Rewrite(None, f"the rewriter is not available: {problem}")

    async def draw(
        self,
        request: EditRequest,
        rewrite: Rewrite | None,
        pictures: SharedPictures,
        on_progress: OnProgress,
        timeout_s: float | None = None,
    ) -> EditOutcome:
        """Draw the edit, with its rewrite if there is one.

        Args:
            timeout_s: seconds after which the engine drops the edit at its next step; None: never.

        Raises:
            ServiceError: the edit failed.
        """
        prompt = rewrite.prompt if rewrite is not None and rewrite.prompt is not None else request.prompt
        final_prompt = camera_prompt(request.camera, prompt, request.camera_words)
        final = replace(request, prompt=final_prompt)
        result = await self._editor.edit(final, pictures, on_progress, timeout_s)
        return EditOutcome(result, request.prompt, final_prompt, request.sampling.seed, rewrite)


async def all_or_none(parts: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines concurrently; returns their results in order. If one fails, the others are cancelled.

    Raises:
        ServiceError: of the first part that failed.
    """
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)
        # An error's traceback holds this frame. If this in turn held the tasks, and they the error, the pictures of a
        # refused request would stay until the garbage collector's next full run, which may be minutes away.
        tasks.clear()


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
