"""No test compares how long work took: that would measure the machine and its load. Times may be printed, and a
deadline may end a test that would hang.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

TESTS = ROOT / "tests"
CLOCKS = {f"{name}{unit}" for name in ("monotonic", "perf_counter", "process_time", "time") for unit in ("", "_ns")}
DURATIONS = ("elapsed_s", "took_s", "median_s")
"""Suffixes of names that hold durations, wherever they are assigned."""


def is_clock(node: ast.AST) -> bool:
    """Whether this is a call such as `time.monotonic()` or, imported by its name, `monotonic()`."""
    if not isinstance(node, ast.Call):
        return False
    function = ast.unparse(node.func)
    return function.removeprefix("time.") in CLOCKS - {"time"} or function == "time.time"


def bound(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """The names that a module assigns to, each with its value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and isinstance(node.target, ast.Name) and node.value:
            yield node.target.id, node.value


def offences(tree: ast.AST) -> list[int]:
    """The lines that assert on a duration, or return a comparison with one."""
    timestamps = {name for name, value in bound(tree) if is_clock(value)}

    def is_timestamp(node: ast.AST) -> bool:
        return is_clock(node) or (isinstance(node, ast.Name) and node.id in timestamps)

    def counts_seconds(node: ast.AST) -> bool:
        return isinstance(node, ast.BinOp) and (is_timestamp(node.left) or is_timestamp(node.right))

    measured = {
        name
        for name, value in bound(tree)
        if any(
            counts_seconds(each) and isinstance(each, ast.BinOp) and isinstance(each.op, ast.Sub)
            for each in ast.walk(value)
        )
    }

    def is_duration(node: ast.AST) -> bool:
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        return counts_seconds(node) or name in measured or name.endswith(DURATIONS)

    conditions = [node.test for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    conditions += [
        node.value for node in ast.walk(tree) if isinstance(node, ast.Return) and isinstance(node.value, ast.Compare)
    ]
    return sorted(condition.lineno for condition in conditions if any(map(is_duration, ast.walk(condition))))


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_compares_durations(path: Path) -> None:
    assert offences(ast.parse(path.read_text())) == []


@pytest.mark.parametrize("path", sorted((TESTS / "clients").glob("*.mjs")), ids=lambda path: path.name)
def test_no_test_of_a_javascript_client_reads_a_clock(path: Path) -> None:
    text = path.read_text()
    assert "Date.now" not in text
    assert "performance.now" not in text


@pytest.mark.parametrize(
    "code",
    [
        "began = time.monotonic()\nassert time.monotonic() - began < 1",
        "began = time.perf_counter()\nwork()\nassert time.perf_counter() < began + 5",
        "began = monotonic()\nwaited = monotonic() - began\nassert waited < 5",
        "began = time.time()\nassert 1 < (waited := time.time() - began)",
        "before = time.monotonic()\ndef late():\n    return time.monotonic() - before < 5",
        "assert answer.elapsed_s < 1",
        "assert max(elapsed_s) < 3",
        "assert abs(created - time.time()) < 60",
    ],
)
def test_the_rule_finds(code: str) -> None:
    assert len(offences(ast.parse(code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "deadline = time.monotonic() + 30\nwhile not done():\n    assert time.monotonic() < deadline",
        "began = time.monotonic()\nwhile time.monotonic() - began < duration_s:\n    work()",
        "began = time.monotonic()\nprint(time.monotonic() - began)\nassert done()",
        "before = time.time()\nassert before <= created <= time.time()",
        "assert clock.now - began == 5",
        "assert settings.timeout_s == 5",
    ],
)
def test_the_rule_allows(code: str) -> None:
    assert offences(ast.parse(code)) == []
