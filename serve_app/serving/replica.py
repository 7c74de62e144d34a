"""Our log lines in Serve's log files, in the format that the Serve file's `logging_config` asks for, and nothing in
them that a caller wrote: no prompts, pictures, keys or URLs."""

import logging

from serve_app.errors import ServiceError
from serve_app.serving.request_id import is_sane


def join_serve_logs() -> None:
    """Give this package's loggers the handlers and level of Serve's own; called once in each replica."""
    serve_logger, ours = logging.getLogger("ray.serve"), logging.getLogger("serve_app")
    for handler in serve_logger.handlers:
        handler.addFilter(discreet)
    ours.handlers = list(serve_logger.handlers)
    ours.setLevel(serve_logger.level)
    ours.propagate = False


def discreet(record: logging.LogRecord) -> bool:
    """Take out of a log line what may be the caller's: the message of one of our errors, which Serve logs with its
    traceback, quotes it; and a request id may be any text."""
    problem = record.exc_info[1] if record.exc_info else None
    if isinstance(problem, ServiceError):
        record.msg, record.args = f"{record.getMessage()} ({problem.code})", None
        record.exc_info = record.exc_text = None
    if not is_sane(getattr(record, "request_id", "-")):
        record.request_id = "-"
    return True
