"""What makes a service ready, and how often that is checked."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from serve_app.edits.job import JobsPort
from serve_app.errors import ServiceUnavailable
from serve_app.ingress import readiness as module
from serve_app.ingress.drain import Draining
from serve_app.ingress.readiness import CHECK_EVERY_S, Readiness


@dataclass
class Behind:
    """An editor, the jobs, and a clock.

    Attributes:
        editor: why no editor would take work; or an error of the check.
        jobs: what `fault` returns; or an error; or an event that never comes.
    """

    editor: str | Exception | None = None
    jobs: str | Exception | asyncio.Event | None = None
    now_s: float = 0.0
    num_checks: int = 0
    draining: Draining = field(default_factory=Draining)

    def __post_init__(self) -> None:
        self.readiness = Readiness(self.draining, self.editor_fault, cast(JobsPort, self), lambda: self.now_s)

    async def editor_fault(self) -> str | None:
        self.num_checks += 1
        await asyncio.sleep(0)
        if isinstance(self.editor, Exception):
            raise self.editor
        return self.editor

    async def fault(self) -> str | None:
        if isinstance(self.jobs, Exception):
            raise self.jobs
        if isinstance(self.jobs, asyncio.Event):
            await self.jobs.wait()
            return None
        return self.jobs

    def reason(self) -> Any:
        """The reason after the last one has become too old."""
        self.now_s += CHECK_EVERY_S
        return asyncio.run(self.readiness.reason())


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({}, None),
        ({"editor": "no Editor is up; 1 starting"}, "editor"),
        ({"editor": RuntimeError("Serve does not answer")}, "editor"),
        ({"jobs": "store"}, "store"),
        ({"jobs": ServiceUnavailable("The jobs are not available right now; try again.")}, "jobs"),
        ({"jobs": RuntimeError("no such deployment")}, "jobs"),
        ({"jobs": TimeoutError()}, "jobs"),
        ({"editor": "no Editor is up", "jobs": "store"}, "editor"),
    ],
    ids=str,
)
def test_one_word_says_what_is_wrong(faults: dict[str, Any], reason: str | None) -> None:
    assert Behind(**faults).reason() == reason


def test_jobs_that_do_not_answer_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "JOBS_TIMEOUT_S", 0.0)
    assert Behind(jobs=asyncio.Event()).reason() == "jobs"


def test_concurrent_callers_share_one_check_and_its_result_is_kept_for_a_second() -> None:
    behind = Behind(editor="broken")

    async def ask(count: int) -> list[str | None]:
        return list(await asyncio.gather(*(behind.readiness.reason() for _ in range(count))))

    async def scenario() -> None:
        assert await ask(5) == ["editor"] * 5
        behind.editor = None
        behind.now_s += CHECK_EVERY_S / 2
        assert await ask(5) == ["editor"] * 5
        assert behind.num_checks == 1
        behind.now_s += CHECK_EVERY_S
        assert await ask(5) == [None] * 5
        assert behind.num_checks == 2

    asyncio.run(scenario())


def test_draining_is_not_cached_and_needs_no_check() -> None:
    behind = Behind()
    assert behind.reason() is None
    behind.draining.begin()
    assert asyncio.run(behind.readiness.reason()) == "draining"
    behind.draining.end()
    assert asyncio.run(behind.readiness.reason()) is None
    assert behind.num_checks == 1


def test_the_detail_is_logged_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    behind = Behind()
    with caplog.at_level("INFO"):
        for editor in (
            None,
            "no Editor is up; 1 starting",
            "no Editor is up; 1 starting",
            "no Editor is healthy",
            None,
        ):
            behind.editor = editor
            behind.reason()
    assert [record.message for record in caplog.records if record.name == module.__name__] == [
        "not ready: no Editor is up; 1 starting",
        "not ready: no Editor is healthy",
        "ready again",
    ]
