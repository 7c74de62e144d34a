"""The engine's counts and times as Prometheus metrics, through Ray's exporter on each node."""

from typing import TYPE_CHECKING

from ray.serve.metrics import Gauge, Histogram

from serve_app.edits.request import EditTimings
from serve_app.serving.metrics import SECONDS, Totals

if TYPE_CHECKING:
    from serve_app.editor.engine.engine import Engine  # imports torch


class EngineMetrics:
    """`update` copies the engine's stats at each health check, `finished` records the times of an edit. Neither runs on
    the engine thread."""

    def __init__(self) -> None:
        self._edits = Gauge("camera_edit_edits", "Edits in the engine now, by state.", ("state",))
        self._ends = Totals("camera_edit_edits_ended", "Edits by their end.", ("end",))
        self._steps = Totals("camera_edit_steps", "Packed transformer calls.")
        self._edit_steps = Totals("camera_edit_edit_steps", "Steps of single edits; more than calls where shared.")
        self._tokens = Totals("camera_edit_step_tokens", "Picture tokens in all packed calls.")
        self._budget = Gauge("camera_edit_step_token_budget", "Picture tokens that a packed call may have now.")
        self._lookups = Totals("camera_edit_cache_lookups", "Look-ups in the condition caches.", ("cache", "result"))
        self._held = Gauge("camera_edit_cache_bytes", "What the condition caches hold.", ("cache",))
        self._stages = Histogram("camera_edit_stage_seconds", "An edit's time in each stage.", SECONDS, ("stage",))
        self._step = Histogram("camera_edit_step_seconds", "One step, as the mean over an edit's steps.", SECONDS)

    def update(self, engine: "Engine") -> None:
        stats = engine.stats
        for state in ("preparing", "waiting", "running", "paused"):
            self._edits.set(getattr(stats, state), {"state": state})
        for end in ("completed", "failed", "cancelled", "expired"):
            self._ends.set(getattr(stats, end), {"end": end})
        self._steps.set(stats.num_steps)
        self._edit_steps.set(stats.num_edit_steps)
        self._tokens.set(stats.num_step_tokens)
        self._budget.set(stats.token_budget)
        for cache, counts in engine.cache_stats.items():
            self._lookups.set(counts.hits, {"cache": cache, "result": "hit"})
            self._lookups.set(counts.misses, {"cache": cache, "result": "miss"})
            self._held.set(counts.held_bytes, {"cache": cache})

    def finished(self, timings: EditTimings) -> None:
        for stage in ("queue", "encode", "steps", "paused", "decode", "compress"):
            self._stages.observe(getattr(timings, f"{stage}_s"), {"stage": stage})
        self._step.observe(timings.steps_s / timings.num_steps)
