"""The engine's counts as Prometheus metrics, through Ray's exporter on each node."""

from collections.abc import Mapping
from dataclasses import asdict

from ray.util.metrics import Gauge

from serve_app.editor.cache import CacheStats
from serve_app.editor.ticket import EngineStats


class EngineMetrics:
    """Gauges that mirror the engine's stats; `update` is cheap and called with each health check."""

    def __init__(self) -> None:
        self._engine = Gauge(
            "camera_edit_engine", "The engine's counts: edits by state, packed steps, edit steps.", tag_keys=("count",)
        )
        self._cache = Gauge(
            "camera_edit_cache", "Look-ups and contents of the condition caches.", tag_keys=("cache", "count")
        )

    def update(self, stats: EngineStats, caches: Mapping[str, CacheStats]) -> None:
        for count, value in asdict(stats).items():
            self._engine.set(value, {"count": count})
        for cache, counts in caches.items():
            for count, value in asdict(counts).items():
                self._cache.set(value, {"cache": cache, "count": count})
