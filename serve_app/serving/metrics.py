"""Shared by the metrics of all deployments.

Ray exports metrics for Prometheus on each node, with `ray_` before each name and `_total` after a counter's. Serve's
classes, unlike Ray's own, add the labels `deployment`, `replica` and `application`; without them, Ray adds up the
replicas of a node.
"""

from collections.abc import Mapping

from ray.serve.metrics import Counter

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0]
"""Bucket bounds of every histogram: from compressing a thumbnail to the longest edit."""


class Totals:
    """A counter that is set to totals which are counted elsewhere."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] = ()) -> None:
        self._counter = Counter(name, description, tag_keys)  # type: ignore[arg-type]  # Serve names a tuple of one
        self._totals: dict[tuple[str, ...], float] = {}

    def set(self, total: float, tags: Mapping[str, str] | None = None) -> None:
        """Increase the counter to a total, which never falls. Ray exports nothing before the first increment."""
        tags = dict(tags or {})
        key = tuple(tags.values())
        more = total - self._totals.get(key, 0.0)
        if more > 0:
            self._counter.inc(more, tags)
            self._totals[key] = total
