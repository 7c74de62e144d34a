"""Whether new work would be done."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from serve_app.edits.job import JobsPort
from serve_app.ingress.drain import Draining
from serve_app.serving.cached_call import CachedCall

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0
JOBS_TIMEOUT_S = 2.0
EDITOR_TIMEOUT_S = 4.0
"""More than `serve_app.serving.handles.fault` waits for its replicas."""

Reason = Literal["draining", "editor", "jobs", "store"]
"""What prevents new work. Anybody may read it, so it holds no detail; the log does."""


class Readiness:
    """Checks of what new work needs, at most once in `CHECK_EVERY_S`. Each change of the reason is logged.

    Args:
        editor_fault: why no editor would take work, or None.
        clock: seconds.
    """

    def __init__(
        self,
        draining: Draining,
        editor_fault: Callable[[], Awaitable[str | None]],
        jobs: JobsPort,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._draining = draining
        self._editor_fault = editor_fault
        self._jobs = jobs
        self._check = CachedCall(self._checked, CHECK_EVERY_S, clock)
        self._logged: str | None = None

    async def reason(self) -> Reason | None:
        """Why new work would not be done, or None."""
        return "draining" if self._draining.begun else await self._check()

    async def _checked(self) -> Reason | None:
        editor, (reason, detail) = await asyncio.gather(self._editor_problem(), self._jobs_problem())
        if editor is not None:
            reason, detail = "editor", editor
        if detail != self._logged:
            self._log(detail)
        return reason

    def _log(self, detail: str | None) -> None:
        if detail is None:
            logger.info("ready again")
        else:
            logger.warning("not ready: %s", detail)
        self._logged = detail

    async def _editor_problem(self) -> str | None:
        try:
            async with asyncio.timeout(EDITOR_TIMEOUT_S):
                return await self._editor_fault()
        except TimeoutError:
            return f"the editors could not be checked within {EDITOR_TIMEOUT_S:g} s"
        except Exception as problem:
            return f"the editors cannot be checked: {problem!r}"

    async def _jobs_problem(self) -> tuple[Reason | None, str | None]:
        """The reason, and the same in words for the log."""
        try:
            async with asyncio.timeout(JOBS_TIMEOUT_S):
                fault = await self._jobs.fault()
        except TimeoutError:
            return "jobs", f"the Jobs deployment did not answer within {JOBS_TIMEOUT_S:g} s"
        except Exception as problem:
            return "jobs", f"the Jobs deployment cannot be checked: {problem!r}"
        return (None, None) if fault is None else ("store", "the Jobs deployment cannot reach its store")
