"""A counter that is set to totals counts their differences."""

from collections.abc import Mapping

import pytest

from serve_app.serving.metrics import Totals


def test_a_total_is_counted_on_by_its_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[float, Mapping[str, str]]] = []
    monkeypatch.setattr("ray.util.metrics.Counter.inc", lambda self, value, tags: counted.append((value, dict(tags))))
    totals = Totals("a_test_total_of_edits", "Edits.", ("end",))
    for total, end in [(0, "failed"), (3, "done"), (3, "done"), (5, "done"), (1, "failed")]:
        totals.set(total, {"end": end})
    assert counted == [(3, {"end": "done"}), (2, {"end": "done"}), (1, {"end": "failed"})]
