"""What is removed from a log line before it is written."""

import logging
import sys

import pytest
from ray._common.formatters import JSONFormatter, TextFormatter

from serve_app.errors import InvalidInput, JobNotFound
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


SECRET = "planted text"


def chained(outer: Exception, inner: Exception, *, cause: bool) -> Exception:
    """`outer`, raised while `inner` was handled."""
    try:
        try:
            raise inner
        except Exception as problem:
            if cause:
                raise outer from problem
            raise outer  # noqa: B904 - the context is what is tested
    except Exception as problem:
        return problem


def quoting() -> Exception:
    """An InvalidInput that quotes the request, as does what it was raised from."""
    return chained(InvalidInput(SECRET), ValueError(SECRET), cause=True)


def caught(*problems: Exception) -> Exception:
    try:
        raise ExceptionGroup("several", problems)
    except ExceptionGroup as group:
        return group


CHAINS = {
    "a cause": chained(RuntimeError("CUDA error"), quoting(), cause=True),
    "a context": chained(RuntimeError("CUDA error"), quoting(), cause=False),
    "further down": chained(RuntimeError("CUDA error"), chained(KeyError(1), quoting(), cause=True), cause=True),
    "in a group": caught(quoting(), RuntimeError("CUDA error")),
    "under a group": caught(chained(RuntimeError("CUDA error"), quoting(), cause=False)),
}


@pytest.mark.parametrize("formatter", [logging.Formatter(), TextFormatter(), JSONFormatter()], ids=type)
@pytest.mark.parametrize("problem", CHAINS.values(), ids=CHAINS)
def test_nothing_chained_to_a_service_error_is_logged(problem: Exception, formatter: logging.Formatter) -> None:
    record = line(problem)
    record.exc_text = SECRET  # as a formatter of another handler leaves it
    assert discreet(record)
    text = formatter.format(record)
    assert "RuntimeError: CUDA error" in text
    assert "Traceback" in text
    assert SECRET not in text


def test_an_error_that_led_to_itself_is_logged_once() -> None:
    first, second = RuntimeError("CUDA error"), KeyError("x")
    first.__cause__, second.__cause__ = second, first
    record = line(first)
    assert discreet(record)
    assert logging.Formatter().format(record).count("CUDA error") == 1


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
