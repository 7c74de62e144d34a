"""Runs the training: one stage after another, then the scores and the files of the weights."""

from pathlib import Path

from serve_app.tiny.checkpoint import TOY_FOLDER
from serve_app.tools.training.export import export, export_cyanotype
from serve_app.tools.training.recipe import Recipe
from serve_app.tools.training.report import ABOUT_NAME, report, report_cyanotype
from serve_app.tools.training.shipped import TrainingOnExport
from serve_app.tools.training.stages import STAGES, Training

NUM_SCENES = 40
"""The number of held-out scenes for the scores of the report."""


def train(folder: Path, max_seconds: float = float("inf")) -> Path | None:
    """Run the stages that are not done yet, on a GPU if there is one.

    Args:
        folder: holds rendered pictures, encoded ones and each stage's file, from which the stage resumes.
        max_seconds: a stage that takes longer is stopped, and no further stage runs.

    Returns:
        The folder of the weights and their scores; None if a stage was stopped.
    """
    training = Training(folder, Recipe())
    if not all(getattr(training, stage)(max_seconds) for stage in STAGES):
        return None
    exported = folder / "export"
    # Scores first, and each with a Training of its own: the export converts the models to float16.
    report(Training(folder, training.recipe), exported, NUM_SCENES)
    export(Training(folder, training.recipe), exported)
    return exported


def train_cyanotype(folder: Path, max_seconds: float = float("inf")) -> Path | None:
    """Train the cyanotype adapter alone, on the shipped weights, or resume.

    Returns:
        The folder of the adapter and of the shipped weights' scores with its own; None if it was stopped.
    """
    # Not fast: the compilation would take longer than these few steps.
    training = TrainingOnExport(folder, Recipe(), TOY_FOLDER, fast=False)
    if not training.cyanotype(max_seconds):
        return None
    exported = folder / "export"
    report_cyanotype(training, TOY_FOLDER / ABOUT_NAME, exported, NUM_SCENES)
    export_cyanotype(training, exported)
    return exported
