"""An event loop whose clock steps to the next timer as soon as nothing else can run, so that tests of timeouts take no
time and do not depend on the machine."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class SteppingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._select = self._selector.select  # type: ignore[attr-defined]
        self._selector.select = self._step  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now

    def _step(self, timeout: float | None) -> Any:
        assert timeout is not None, "nothing can happen any more"
        self._now += timeout
        return self._select(0)


def run(main: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine on such a loop."""
    with asyncio.Runner(loop_factory=SteppingLoop) as runner:
        return runner.run(main)


async def settle() -> None:
    """Let everything run that can run without time passing."""
    await asyncio.sleep(1e-6)
