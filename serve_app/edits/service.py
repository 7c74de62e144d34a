"""The story of one edit: rewrite the prompt if asked, put the camera tokens in front, draw, collect. No Ray."""

import logging
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from serve_app.edits.camera import camera_prompt
from serve_app.edits.request import EditJob, EditOutcome, EditRequest, EditResult, Progress, Rewrite, RewriteJob
from serve_app.errors import ServiceError

logger = logging.getLogger(__name__)

P = TypeVar("P", contravariant=True)
"""Pictures, or whatever stands for them on their way: the service hands them on without looking."""


Tell = Callable[[Progress], None]
"""Takes the steps of an edit as they are done; it must not block."""


class EditorPort(Protocol[P]):
    async def edit(self, job: EditJob, pictures: P, tell: Tell) -> EditResult: ...


class RewriterPort(Protocol[P]):
    async def rewrite(self, job: RewriteJob, pictures: P) -> Rewrite: ...


class EditService(Generic[P]):
    """Runs edits through an editor and, where asked, a rewriter."""

    def __init__(self, editor: EditorPort[P], rewriter: RewriterPort[P] | None) -> None:
        self._editor = editor
        self._rewriter = rewriter

    async def run(self, request: EditRequest, pictures: P, tell: Tell = lambda progress: None) -> EditOutcome:
        """One edit from its request to its encoded picture. Where the task is cancelled, the edit is dropped.

        Raises:
            ServiceError: what became of the edit. A rewriter that fails is no error: the user's own words are used.
        """
        rewrite = None
        if request.rewrite_prompt:
            tell(Progress(0, request.sampling.num_inference_steps))
            rewrite = await self._rewrite(request, pictures)
        prompt = rewrite.prompt if rewrite is not None and rewrite.prompt is not None else request.prompt
        final_prompt = camera_prompt(request.camera, prompt)
        job = EditJob(
            request_id=request.request_id,
            prompt=final_prompt,
            sampling=request.sampling,
            size=request.size,
            output=request.output,
            low_priority=request.low_priority,
            num_previews=request.num_previews,
            camera=request.camera,
        )
        result = await self._editor.edit(job, pictures, tell)
        return EditOutcome(result, request.prompt, final_prompt, request.sampling.seed, rewrite)

    async def _rewrite(self, request: EditRequest, pictures: P) -> Rewrite:
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
