"""Wraps an EditorPort and counts waiting, running and finished edits."""

from typing import Generic, TypeVar

from serve_app.edits.request import EditJob, EditResult, Progress
from serve_app.edits.service import EditorPort, OnProgress
from serve_app.ingress.load import ThroughputMeter

P = TypeVar("P", contravariant=True)


class MeteredEditor(Generic[P]):
    """An EditorPort that reports to a ThroughputMeter what waits, runs and is done."""

    def __init__(self, editor: EditorPort[P], pace: ThroughputMeter) -> None:
        self._editor = editor
        self._pace = pace

    async def edit(self, job: EditJob, pictures: P, on_progress: OnProgress) -> EditResult:
        """As the editor; its first progress says that the edit was taken up."""
        taken_up = False

        def told(progress: Progress) -> None:
            nonlocal taken_up
            if not taken_up:
                taken_up = True
                self._pace.num_waiting -= 1
                self._pace.num_running += 1
            on_progress(progress)

        self._pace.num_waiting += 1
        try:
            result = await self._editor.edit(job, pictures, told)
            self._pace.num_done += 1
            return result
        finally:
            if taken_up:
                self._pace.num_running -= 1
            else:
                self._pace.num_waiting -= 1
