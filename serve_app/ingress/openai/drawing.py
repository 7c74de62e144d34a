"""Draws the pictures of a request that waits for them, and reports its events."""

import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from serve_app.edits.deadline import Deadline
from serve_app.edits.request import EditOutcome, EditRequest, Progress, SharedPictures
from serve_app.edits.service import EditService, all_or_none
from serve_app.ingress.backend import Backend
from serve_app.ingress.openai.events import Event, Finished, Preview
from serve_app.ingress.prepare import Prepared

OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class DrawResult:
    """All pictures of a request, in order, and when the last one was done, in seconds since the epoch."""

    outcomes: Sequence[EditOutcome]
    at: float


Draw = Callable[[OnEvent], Coroutine[Any, Any, DrawResult]]
"""Draws all pictures of a request and reports its events; it raises what it failed with."""


async def draw_now(backend: Backend, prepared: Prepared, deadline: Deadline, put: OnEvent) -> DrawResult:
    """Draw while the client waits; where this is cancelled, all its edits are.

    Raises:
        DeadlineExceeded: not all were done in time.
        ServiceError: of the first edit that failed.
    """
    shared = [backend.share(pictures) for pictures in prepared.pictures]
    outcomes = await all_or_none(
        _draw_one(backend.service, index, edit, shared[prepared.pictures_of[index]], deadline, put)
        for index, edit in enumerate(prepared.edits)
    )
    return DrawResult(outcomes, time.time())


async def _draw_one(
    service: EditService, index: int, edit: EditRequest, pictures: SharedPictures, deadline: Deadline, put: OnEvent
) -> EditOutcome:
    outcome = await service.run(edit, pictures, partial(_tell, put, index, edit.num_previews, []), deadline)
    put(Finished(index, outcome))
    return outcome


def _tell(put: OnEvent, index: int, num_previews: int, told: list[Preview], progress: Progress) -> None:
    # An edit that is run once more, on another replica, tells its previews again.
    if progress.preview is not None and len(told) < num_previews:
        told.append(Preview(index, len(told), progress.preview))
        put(told[-1])
