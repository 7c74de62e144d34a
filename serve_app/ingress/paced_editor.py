"""Wraps an EditorPort and counts waiting, running and finished edits."""

from serve_app.edits.request import EditRequest, EditResult, Progress, SharedPictures
from serve_app.edits.service import EditorPort, OnProgress
from serve_app.ingress.load import ThroughputMeter


class MeteredEditor:
    """An EditorPort that reports to a ThroughputMeter what waits, runs and is done."""

    def __init__(self, editor: EditorPort, pace: ThroughputMeter) -> None:
        self._editor = editor
        self._pace = pace

    async def edit(
        self, request: EditRequest, pictures: SharedPictures, on_progress: OnProgress, timeout_s: float | None = None
    ) -> EditResult:
        """As the editor; its first progress says that the edit was taken up."""
        taken_up = False

        def count_and_report(progress: Progress) -> None:
            nonlocal taken_up
            if not taken_up:
                taken_up = True
                self._pace.num_waiting -= 1
                self._pace.num_running += 1
            on_progress(progress)

        self._pace.num_waiting += 1
        try:
            result = await self._editor.edit(request, pictures, count_and_report, timeout_s)
            self._pace.num_done += 1
            return result
        finally:
            if taken_up:
                self._pace.num_running -= 1
            else:
                self._pace.num_waiting -= 1
