"""What is removed from a log line before it is written."""

import logging
import sys

import pytest

from serve_app.errors import JobNotFound
from serve_app.serving.replica import discreet


def line(problem: Exception | None = None, request_id: str | None = None) -> logging.LogRecord:
    exc_info = None
    if problem is not None:
        try:
            raise problem
        except Exception:
            exc_info = sys.exc_info()
    record = logging.LogRecord("ray.serve", logging.ERROR, "x.py", 1, "Request %s.", ("failed",), exc_info)
    if request_id is not None:
        record.request_id = request_id
    return record


def test_a_service_error_is_logged_by_its_code_alone() -> None:
    record = line(JobNotFound("There is no job my-secret."))
    assert discreet(record)
    assert "my-secret" not in logging.Formatter().format(record)
    assert record.getMessage() == "Request failed. (not_found)"


def test_any_other_error_keeps_its_traceback() -> None:
    record = line(RuntimeError("CUDA error"))
    assert discreet(record)
    assert "RuntimeError: CUDA error" in logging.Formatter().format(record)


@pytest.mark.parametrize(
    ("request_id", "logged"), [("a-sane-id", "a-sane-id"), ("any text", "-"), ("", "-"), ("x" * 129, "-")]
)
def test_a_malformed_request_id_is_not_logged(request_id: str, logged: str) -> None:
    record = line(request_id=request_id)
    assert discreet(record)
    assert record.__dict__["request_id"] == logged


def test_a_line_without_a_request_id_gets_none() -> None:
    record = line()
    assert discreet(record)
    assert not hasattr(record, "request_id")
