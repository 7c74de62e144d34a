"""For every replica: its logs, and faster imports.

Log lines go to Serve's log files, in the format of the Serve file's `logging_config`. They hold nothing that a caller
wrote: no prompts, pictures, keys or URLs.
"""

import gc
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import ServiceError
from serve_app.serving.control_headers import is_sane


def join_serve_logs() -> None:
    """Give this package's loggers the handlers and the level of Serve's logger. Called once in each replica."""
    serve_logger, package_logger = logging.getLogger("ray.serve"), logging.getLogger("serve_app")
    for handler in serve_logger.handlers:
        handler.addFilter(discreet)
    package_logger.handlers = list(serve_logger.handlers)
    package_logger.setLevel(serve_logger.level)
    package_logger.propagate = False


def discreet(record: logging.LogRecord) -> bool:
    """A log filter that removes what a caller may have written: the message of a ServiceError, which Serve logs with
    its traceback, quotes the request, and so may every exception that is chained to it; a request id may be any
    text."""
    problem = record.exc_info[1] if record.exc_info else None
    if isinstance(problem, ServiceError):
        record.msg, record.args = f"{record.getMessage()} ({problem.code})", None
        record.exc_info = record.exc_text = None
    elif problem is not None:
        record.exc_text = "".join(_discreet_lines(problem, set())).rstrip("\n")
    if not is_sane(getattr(record, "request_id", "-")):
        record.request_id = "-"
    return True


def _discreet_lines(problem: BaseException, seen: set[int]) -> Iterator[str]:
    """A traceback with its chain as Python prints it, without the text of a ServiceError and all that led to it."""
    seen.add(id(problem))
    if isinstance(problem, ServiceError):
        yield f"{type(problem).__name__} ({problem.code})\n"
        return
    before = problem.__cause__ or (None if problem.__suppress_context__ else problem.__context__)
    if before is not None and id(before) not in seen:
        yield from _discreet_lines(before, seen)
        yield "\nwhich led to:\n\n"
    if isinstance(problem, BaseExceptionGroup):
        yield "Traceback (most recent call last):\n"
        yield from traceback.format_tb(problem.__traceback__)
        yield f"{type(problem).__name__} of:\n"
        for each in problem.exceptions:
            yield from _discreet_lines(each, seen)
    else:
        yield from traceback.format_exception(problem, chain=False)


@contextmanager
def without_collection() -> Iterator[None]:
    """Imports large libraries sooner: Python's garbage collector frees nothing of what imports make, but scans all of
    it again and again. Of seven seconds for torch, diffusers and transformers it took one."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
