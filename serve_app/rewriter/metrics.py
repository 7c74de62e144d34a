"""The rewriter's results and times as Prometheus metrics, through Ray's exporter on each node."""

from ray.util.metrics import Counter, Histogram

from serve_app.edits.request import Rewrite
from serve_app.serving.metrics import SECONDS


class RewriteMetrics:
    def __init__(self) -> None:
        self._rewrites = Counter(
            "camera_edit_rewrites", "Rewritings: rewritten, or fallback to the user's prompt.", ("outcome",)
        )
        self._seconds = Histogram("camera_edit_rewrite_seconds", "One rewriting, waiting included.", SECONDS)

    def ended(self, rewrite: Rewrite, seconds: float) -> None:
        self._rewrites.inc(1, {"outcome": "fallback" if rewrite.prompt is None else "rewritten"})
        self._seconds.observe(seconds)
