"""The training as a whole: one stage after another, then the weights' files and their scores."""

from pathlib import Path

from serve_app.tools.training.export import export
from serve_app.tools.training.recipe import Recipe
from serve_app.tools.training.report import report
from serve_app.tools.training.workshop import STAGES, Workshop

NUM_SCENES = 40
"""Held-out scenes from which the scores are taken."""


def train(folder: Path, max_seconds: float = float("inf")) -> Path | None:
    """Train what is not trained yet, on CUDA where there is one.

    Args:
        folder: keeps rendered pictures, encoded ones and each stage's file, from which it goes on.
        max_seconds: a stage that takes longer is left as it stands, and nothing follows it.

    Returns:
        The folder of the weights and their scores; None where a stage was left.
    """
    workshop = Workshop(folder, Recipe())
    if not all(getattr(workshop, stage)(max_seconds) for stage in STAGES):
        return None
    exported = folder / "export"
    # Scores first, and each with a workshop of its own: what is exported becomes float16 on its way.
    report(Workshop(folder, workshop.recipe), exported, NUM_SCENES)
    export(Workshop(folder, workshop.recipe), exported)
    return exported
