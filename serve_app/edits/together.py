"""Several tasks of one request, side by side."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from serve_app.errors import ServiceError

T = TypeVar("T")


async def all_or_none(parts: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all coroutines, in order. A request has one end: where a part fails, the others are cancelled.

    Raises:
        ServiceError: of the first part that failed.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in parts]
    except* ServiceError as problems:
        raise _first(problems) from None
    return [task.result() for task in tasks]


def _first(problems: BaseExceptionGroup[ServiceError]) -> ServiceError:
    problem = problems.exceptions[0]
    return problem if isinstance(problem, ServiceError) else _first(problem)
