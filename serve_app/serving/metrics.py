"""What the metrics of all deployments share.

Ray exports them for Prometheus on each node, with `ray_` before each name and `_total` after a counter's.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0]
"""Bounds of every histogram's buckets: from a compressed thumbnail to the longest edit."""


class Totals:
    """A counter that is told totals, by those who count for themselves."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] = ()) -> None:
        self._counter = Counter(name, description, tag_keys)
        self._told: dict[tuple[str, ...], float] = {}

    def tell(self, total: float, tags: Mapping[str, str] | None = None) -> None:
        """Count on to a total, which never falls. Ray counts nothing before the first increment."""
        tags = dict(tags or {})
        key = tuple(tags.values())
        more = total - self._told.get(key, 0.0)
        if more > 0:
            self._counter.inc(more, tags)
            self._told[key] = total
