"""Fakes shared by the tests: a model that records its steps, and ports that return at once."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import BatchFeature

from serve_app.editor.model.cache import CacheStats
from serve_app.editor.model.edit_model import Draft, Prepared
from serve_app.editor.model.schedule import Schedule
from serve_app.edits.request import (
    EditRequest,
    EditResult,
    EditTimings,
    Pictures,
    Pixels,
    PreparedPicture,
    Progress,
    Rewrite,
    RewriteRequest,
    Sampling,
    SharedPictures,
    TokenCounts,
)
from serve_app.edits.service import OnProgress
from serve_app.edits.sizes import OutputSize, Size

TIMINGS = EditTimings(
    queue_s=0.25, encode_s=0.1, steps_s=1.0, decode_s=0.1, compress_s=0.05, num_steps=4, shared_steps=0
)


TOKENS = TokenCounts(prompt=20, references=16, output=16)


def picture(width: int = 64, height: int = 64) -> PreparedPicture:
    """A blank picture, the same for VAE and text encoder."""
    blank = np.zeros((height, width, 3), np.uint8)
    return PreparedPicture(blank, blank)


def edit_request(name: str = "edit", *, steps: int = 4, side_px: int = 64, guidance: float = 1.0) -> EditRequest:
    """An EditRequest for a square picture; `name` is its prompt and its id."""
    size = Size(side_px, side_px)
    sampling = Sampling(num_inference_steps=steps, true_cfg_scale=guidance)
    return EditRequest(request_id=name, prompt=name, sampling=sampling, size=OutputSize(size, size))


@dataclass
class FakeModel:
    """A StepModel that records which edits shared each step.

    Attributes:
        packs: the names of the edits in each step, added when the step begins.
        begun: the names of the edits in each call of begin.
        failing: the stage in which an edit fails, by its name: prepare, begin, step, preview or finish.
        problem: makes the error that is raised from its message.
        memory: the maximum number of edits in one call of begin or step; more raise OutOfMemoryError.
        num_freed: the number of calls of free.
        gate: if set, every step waits for one release.
    """

    packs: list[list[str]] = field(default_factory=list)
    begun: list[list[str]] = field(default_factory=list)
    failing: dict[str, str] = field(default_factory=dict)
    problem: Callable[[str], Exception] = RuntimeError
    memory: int = 1000
    num_freed: int = 0
    gate: threading.Semaphore | None = None
    _names: dict[int, str] = field(default_factory=dict)

    def prepare(self, request: EditRequest, pictures: Pictures) -> Prepared:
        self._maybe_fail(request.prompt, "prepare")
        steps = request.sampling.num_inference_steps
        schedule = Schedule((0.0,) * steps, (0.0,) * steps)
        return Prepared(request.size.made, schedule, 1.0, (((request.prompt,), BatchFeature()),), (), torch.zeros(0))

    def begin(self, edits: Sequence[Prepared]) -> list[Draft]:
        names = [edit.prompts[0][0][0] for edit in edits]
        self.begun.append(names)
        self._maybe_run_out(len(names))
        for name in names:
            self._maybe_fail(name, "begin")
        drafts = [Draft(edit.size, edit.schedule, 1.0, (), torch.zeros(0), torch.zeros(0)) for edit in edits]
        self._names.update({id(draft): name for draft, name in zip(drafts, names, strict=True)})
        return drafts

    def step(self, drafts: Sequence[Draft]) -> None:
        names = [self._names[id(draft)] for draft in drafts]
        self.packs.append(names)
        if self.gate is not None and not self.gate.acquire(timeout=10):
            raise TimeoutError("the test never released this step")
        self._maybe_run_out(len(names))
        for name in names:
            self._maybe_fail(name, "step")
        for draft in drafts:
            draft.index += 1

    def preview(self, draft: Draft) -> Pixels:
        self._maybe_fail(self._names[id(draft)], "preview")
        return np.full((draft.size.height, draft.size.width, 3), 128, np.uint8)

    @property
    def cache_stats(self) -> dict[str, CacheStats]:
        return {}

    def finish(self, draft: Draft) -> Pixels:
        self._maybe_fail(self._names[id(draft)], "finish")
        return np.zeros((draft.size.height, draft.size.width, 3), np.uint8)

    def free(self) -> None:
        self.num_freed += 1

    def _maybe_fail(self, name: str, stage: str) -> None:
        if self.failing.get(name) == stage:
            raise self.problem(f"{name} breaks in {stage}")

    def _maybe_run_out(self, num_edits: int) -> None:
        if num_edits > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@dataclass
class FakeEditor:
    """An EditorPort that returns the prompt's bytes as the picture, or raises `problem` if set.

    Attributes:
        requests: the requests, in the order of their arrival.
        timeouts_s: the time limit of each request.
        gate: if set, every edit waits for one release after its first progress report.
    """

    requests: list[EditRequest] = field(default_factory=list)
    timeouts_s: list[float | None] = field(default_factory=list)
    problem: Exception | None = None
    gate: asyncio.Semaphore | None = None
    num_cancelled: int = 0

    async def edit(
        self, request: EditRequest, pictures: SharedPictures, on_progress: OnProgress, timeout_s: float | None = None
    ) -> EditResult:
        self.requests.append(request)
        self.timeouts_s.append(timeout_s)
        num_steps = request.sampling.num_inference_steps
        on_progress(Progress(0, num_steps))
        if self.gate is not None:
            try:
                await self.gate.acquire()
            except asyncio.CancelledError:
                self.num_cancelled += 1
                raise
        if self.problem is not None:
            raise self.problem
        for number in range(1, request.num_previews + 1):
            on_progress(Progress(number, num_steps, f"preview {number}".encode()))
        return EditResult(request.prompt.encode(), request.output.media_type, TIMINGS, TOKENS, worker_id="worker-1")


@dataclass
class FakeRewriter:
    """A RewriterPort that always returns `answer`, or raises `problem` if set."""

    answer: Rewrite = field(default_factory=lambda: Rewrite("a precise wish"))
    problem: Exception | None = None
    jobs: list[RewriteRequest] = field(default_factory=list)

    async def rewrite(self, job: RewriteRequest, pictures: SharedPictures) -> Rewrite:
        self.jobs.append(job)
        if self.problem is not None:
            raise self.problem
        return self.answer
