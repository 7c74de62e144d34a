"""The tools: what they are called, and how a call runs."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import cache, partial
from typing import Any

from mcp_types import CallToolResult, Tool, ToolAnnotations
from pydantic import BaseModel

from serve_app.edits.request import EditOutcome, EditRequest, Progress, SharedPictures
from serve_app.edits.service import Deadline, all_or_none
from serve_app.ingress.auth import CLIENT
from serve_app.ingress.backend import Backend
from serve_app.ingress.limits.budget import RESPONSE_BYTES, num_base64_bytes
from serve_app.ingress.mcp.answers import McpAdapters, McpPictures, adapters_result, pictures_result
from serve_app.ingress.mcp.parse import parse_tool
from serve_app.ingress.mcp.request import EditImage, ListAdapters, MoveCamera, Orbit
from serve_app.ingress.parsing.bodies import validated

ReportProgress = Callable[[float, float], Awaitable[None]]
"""Receives the finished steps of a call and their total."""

ARGUMENTS: dict[str, type[EditImage | MoveCamera | Orbit | ListAdapters]] = {
    "edit_image": EditImage,
    "move_camera": MoveCamera,
    "orbit": Orbit,
    "list_adapters": ListAdapters,
}

_DESCRIPTIONS = {
    "edit_image": ("Edit a picture", "Change a picture as an instruction says, such as: Make it sunset."),
    "move_camera": (
        "Move the camera",
        "Draw what a picture shows as seen from another camera pose. The poses are relative to the picture: azimuth 0, "
        "elevation 0 and distance 1 is its own view from the front at eye level.",
    ),
    "orbit": ("Orbit around the subject", "Draw what a picture shows from several sides, one picture for each."),
    "list_adapters": (
        "List the adapters",
        "The LoRA adapters of the model: those of all edits, and those that `loras` may name.",
    ),
}


def list_tools() -> list[Tool]:
    """The tools as clients list them."""
    return [_tool(name, arguments) for name, arguments in ARGUMENTS.items()]


@cache  # pydantic takes milliseconds for each schema
def _tool(name: str, arguments: type[BaseModel]) -> Tool:
    title, description = _DESCRIPTIONS[name]
    result: type[BaseModel] = McpAdapters if arguments is ListAdapters else McpPictures
    return Tool(
        name=name,
        title=title,
        description=description,
        input_schema=arguments.model_json_schema(),
        output_schema=result.model_json_schema(),
        annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
    )


async def call_tool(
    backend: Backend, name: str, arguments: dict[str, Any], request_id: str, report: ReportProgress
) -> CallToolResult:
    """Run one of the tools. When this is cancelled, so are its edits.

    Raises:
        ServiceError: the arguments are wrong, there is no place, or an edit failed.
    """
    fields = validated(ARGUMENTS[name], arguments)
    if isinstance(fields, ListAdapters):
        return adapters_result(backend.loras)
    parsed = parse_tool(fields, backend.settings, backend.loras)
    deadline = Deadline.after(parsed.timeout_s)
    with backend.edit_places.take(CLIENT.get(), len(parsed.edits)):
        prepared = await deadline.bound(backend.prepare(request_id, parsed))
        pictures = backend.share(prepared.pictures[0])
        outcomes = await _draw(backend, prepared.edits, pictures, deadline, report)
    # Here rather than when the response is sent, since a stream that has begun cannot become an error.
    await RESPONSE_BYTES.get().reserve(num_base64_bytes(outcomes))
    # Off the event loop, since encoding pictures in base64 takes time.
    return await asyncio.to_thread(pictures_result, prepared.edits, outcomes)


async def _draw(
    backend: Backend,
    edits: Sequence[EditRequest],
    pictures: SharedPictures,
    deadline: Deadline,
    report: ReportProgress,
) -> list[EditOutcome]:
    steps = StepReporter([edit.sampling.num_inference_steps for edit in edits], report)
    reporting = asyncio.create_task(steps.run())
    try:
        outcomes = await all_or_none(
            backend.service.run(edit, pictures, partial(steps.update, index), deadline)
            for index, edit in enumerate(edits)
        )
    finally:
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
    await steps.finish()
    return outcomes


class StepReporter:
    """Reports the steps of all edits of a call. A client that reads slowly gets fewer reports, not older ones.

    Args:
        num_steps: of each edit.
    """

    def __init__(self, num_steps: Sequence[int], report: ReportProgress) -> None:
        self._done = [0] * len(num_steps)
        self._total = sum(num_steps)
        self._report = report
        self._reported = -1
        self._changed = asyncio.Event()

    def update(self, index: int, progress: Progress) -> None:
        # An edit that is repeated on another replica begins again; progress must not decrease.
        self._done[index] = max(self._done[index], progress.step)
        self._changed.set()

    async def run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._send(sum(self._done))

    async def finish(self) -> None:
        await self._send(self._total)

    async def _send(self, done: int) -> None:
        if done > self._reported:
            self._reported = done
            await self._report(done, self._total)
