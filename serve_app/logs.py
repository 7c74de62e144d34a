"""Our log lines in Serve's log files, in the format that the Serve file's `logging_config` asks for."""

import logging


def join_serve_logs() -> None:
    """Give this package's loggers the handlers and level of Serve's own; called once in each replica."""
    serve_logger, ours = logging.getLogger("ray.serve"), logging.getLogger("serve_app")
    ours.handlers = list(serve_logger.handlers)
    ours.setLevel(serve_logger.level)
    ours.propagate = False
