"""What one process hands to the editors at once, and in which order."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from serve_app.edits.fair_editor import EDITS_AT_ONCE, FairEditor
from serve_app.edits.request import EditResult, SharedPictures
from serve_app.errors import Overloaded
from tests.fakes import FakeEditor, edit_request
from tests.waiting import until_async


class Scene:
    """A FairEditor before an editor that ends one edit at each release of its gate, and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.behind = FakeEditor(gate=asyncio.Semaphore(0))
        self._fair = FairEditor(self.behind, lambda: self.now)

    def send(self, client: str, num: int, timeout_s: float | None = None) -> list["asyncio.Task[EditResult]"]:
        requests = [replace(edit_request(f"{client} {number}"), client=client) for number in range(num)]
        return [asyncio.create_task(self._edit(each, timeout_s)) for each in requests]

    async def _edit(self, request: Any, timeout_s: float | None) -> EditResult:
        return await self._fair.edit(request, SharedPictures(()), lambda progress: None, timeout_s)

    @property
    def clients(self) -> list[str]:
        """Of the edits that were handed over."""
        return [request.client for request in self.behind.requests]

    async def until_handed_over(self, num: int) -> None:
        await until_async(lambda: len(self.clients) == num)

    def end_one(self) -> None:
        assert self.behind.gate is not None
        self.behind.gate.release()


def scene_test(test: Callable[[Scene], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    async def run() -> None:
        async with asyncio.timeout(20):
            await test(Scene())

    return lambda: asyncio.run(run())


@scene_test
async def test_another_clients_edits_are_handed_over_beside_many_of_the_first(scene: Scene) -> None:
    scene.send("first", 100)
    await scene.until_handed_over(56)
    scene.send("second", 10)
    await scene.until_handed_over(EDITS_AT_ONCE)
    assert scene.clients[56:] == ["second"] * 8


@scene_test
async def test_clients_take_turns(scene: Scene) -> None:
    scene.send("first", 60)
    scene.send("second", 60)
    scene.send("third", 60)
    await scene.until_handed_over(EDITS_AT_ONCE)
    for number in range(1, 7):
        scene.end_one()
        await scene.until_handed_over(EDITS_AT_ONCE + number)
    assert scene.clients[EDITS_AT_ONCE:] == ["third", "first", "second"] * 2


@scene_test
async def test_an_edit_that_is_cancelled_leaves_its_slot(scene: Scene) -> None:
    tasks = scene.send("first", 58)
    await scene.until_handed_over(56)
    tasks[56].cancel()
    tasks[0].cancel()
    await scene.until_handed_over(57)
    assert scene.behind.requests[-1].prompt == "first 57"
    assert scene.behind.num_cancelled == 1


@scene_test
async def test_an_edit_that_fails_leaves_its_slot(scene: Scene) -> None:
    scene.behind.problem = Overloaded("full")
    tasks = scene.send("first", 57)
    await scene.until_handed_over(56)
    scene.end_one()
    await scene.until_handed_over(57)
    with pytest.raises(Overloaded):
        await tasks[0]


@scene_test
async def test_the_wait_counts_in_the_time_limit(scene: Scene) -> None:
    scene.send("first", 57, timeout_s=30.0)
    await scene.until_handed_over(56)
    scene.now += 12.0
    scene.end_one()
    await scene.until_handed_over(57)
    assert scene.behind.timeouts_s[0] == 30.0
    assert scene.behind.timeouts_s[-1] == 18.0
