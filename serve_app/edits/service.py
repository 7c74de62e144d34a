"""The steps of one edit: rewrite the prompt if requested, put the camera tokens in front, draw, collect. No Ray."""

import logging
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from serve_app.edits.camera import camera_prompt
from serve_app.edits.deadline import Deadline
from serve_app.edits.request import EditJob, EditOutcome, EditRequest, EditResult, Progress, Rewrite, RewriteJob
from serve_app.errors import ServiceError

logger = logging.getLogger(__name__)

P = TypeVar("P", contravariant=True)
"""Pictures, or whatever stands for them on their way: the service hands them on without looking."""


OnProgress = Callable[[Progress], None]
"""Takes the steps of an edit as they are done; it must not block."""


class EditorPort(Protocol[P]):
    async def edit(self, job: EditJob, pictures: P, on_progress: OnProgress) -> EditResult: ...


class RewriterPort(Protocol[P]):
    async def rewrite(self, job: RewriteJob, pictures: P) -> Rewrite: ...


class EditService(Generic[P]):
    """Runs edits through an editor and, where requested, a rewriter."""

    def __init__(self, editor: EditorPort[P], rewriter: RewriterPort[P] | None) -> None:
        self._editor = editor
        self._rewriter = rewriter

    async def run(
        self,
        request: EditRequest,
        pictures: P,
        on_progress: OnProgress = lambda progress: None,
        deadline: Deadline = Deadline(),  # noqa: B008 - it is frozen
    ) -> EditOutcome:
        """One edit from its request to its encoded picture. Where the task is cancelled, the edit is dropped.

        Raises:
            DeadlineExceeded: it was not done in time.
            ServiceError: what became of the edit. A rewriter that fails is no error: the user's own prompt is used.
        """
        rewrite = await deadline.bound(self.rewrite(request, pictures, on_progress))
        return await deadline.bound(self.draw(request, rewrite, pictures, on_progress, deadline.left_s))

    async def rewrite(self, request: EditRequest, pictures: P, on_progress: OnProgress) -> Rewrite | None:
        """What the rewriter makes of the prompt, or why it made nothing; None where no rewriting was requested."""
        if not request.rewrite_prompt:
            return None
        on_progress(Progress(0, request.sampling.num_inference_steps))
        if self._rewriter is None:
            return Rewrite(None, "this server has no rewriter")
        if not request.prompt.strip():
            return Rewrite(None, "there is no prompt to rewrite")
        job = RewriteJob(request.request_id, request.prompt, request.sampling.seed)
        try:
            return await self._rewriter.rewrite(job, pictures)
        except ServiceError as problem:
            logger.warning("no rewriting for %s: %s", request.request_id, problem)
            return Rewrite(None, f"the rewriter is not available: {problem}")

    async def draw(
        self,
        request: EditRequest,
        rewrite: Rewrite | None,
        pictures: P,
        on_progress: OnProgress,
        timeout_s: float | None = None,
    ) -> EditOutcome:
        """The edit with its rewriting done.

        Args:
            timeout_s: seconds after which the engine drops the edit at its next step; None: never.

        Raises:
            ServiceError: what became of the edit.
        """
        prompt = rewrite.prompt if rewrite is not None and rewrite.prompt is not None else request.prompt
        final_prompt = camera_prompt(request.camera, prompt)
        job = EditJob(
            request_id=request.request_id,
            prompt=final_prompt,
            sampling=request.sampling,
            size=request.size,
            output=request.output,
            timeout_s=timeout_s,
            low_priority=request.low_priority,
            num_previews=request.num_previews,
            camera=request.camera,
        )
        result = await self._editor.edit(job, pictures, on_progress)
        return EditOutcome(result, request.prompt, final_prompt, request.sampling.seed, rewrite)
