"""The table of dialects: which paths belong to each, which of those are work, and how its errors look."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel

from serve_app.ingress.openai.answers import error_body as openai_error
from serve_app.ingress.runpod.answers import error_body as runpod_error

_NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True)
class Dialect:
    """Patterns are matched from the start of a path. Those of routes end with `$`, which like Starlette's own also
    admits a newline.

    Attributes:
        name: in metrics.
        paths: all paths of the dialect, known or not.
        work: the routes whose POST requests ask for edits. The drain and admission apply to these alone.
        unrepeatable: the routes among them that ignore an Idempotency-Key.
        makes_jobs: its work takes places in the queue of jobs.
        error_body: makes an error's body of its status, code, message and field.
    """

    name: str
    paths: re.Pattern[str]
    work: re.Pattern[str]
    unrepeatable: re.Pattern[str]
    makes_jobs: bool
    error_body: Callable[[int, str, str, str | None], BaseModel]


DIALECTS = (
    Dialect(
        name="openai",
        paths=re.compile(r"/v1/|.*/openai/v1/", re.DOTALL),
        work=re.compile(r"(/v2/[^/]+/openai)?/v1/images/edits$"),
        unrepeatable=_NOTHING,
        makes_jobs=False,
        error_body=openai_error,
    ),
    # The last one, since it has every other path.
    Dialect(
        name="runpod",
        paths=re.compile(""),
        work=re.compile(r"(/v2/[^/]+)?/(run|runsync|retry/[^/]+)$"),
        unrepeatable=re.compile(r"(/v2/[^/]+)?/retry/[^/]+$"),
        makes_jobs=True,
        error_body=runpod_error,
    ),
)


def dialect_of(path: str) -> Dialect:
    return next(dialect for dialect in DIALECTS if dialect.paths.match(path))


def is_work(method: str, path: str) -> bool:
    """Whether a request asks for edits; the others only read their state or end them."""
    return method == "POST" and any(dialect.work.match(path) for dialect in DIALECTS)


def is_repeatable_work(method: str, path: str) -> bool:
    """Whether a request asks for edits and its Idempotency-Key is read."""
    return is_work(method, path) and not any(dialect.unrepeatable.match(path) for dialect in DIALECTS)
