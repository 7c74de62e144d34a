"""`python -m serve_app.tiny.training FOLDER`: train what is not trained yet, export and score it."""

import argparse
from pathlib import Path

import torch

from serve_app.tiny.training.export import export
from serve_app.tiny.training.recipe import Recipe
from serve_app.tiny.training.report import report
from serve_app.tiny.training.run import STAGES, Workshop, train


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.tiny.training", description=__doc__)
    parser.add_argument("folder", type=Path, help="where pictures and stages are kept; run again to go on")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=STAGES, help="default: all")
    parser.add_argument("--max-minutes", type=float, default=float("inf"), help="of each stage")
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--export", type=Path, help="a folder for the weights' files; scores lie beside them")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.num_threads)
    done = train(chosen.folder, chosen.stages, max_seconds=60 * chosen.max_minutes)
    if done and chosen.export:
        # Scores first: what is exported becomes float16 on its way.
        report(Workshop(chosen.folder, Recipe()), chosen.export)
        export(Workshop(chosen.folder, Recipe()), chosen.export)


if __name__ == "__main__":
    main()
