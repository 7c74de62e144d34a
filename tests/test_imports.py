"""Imports point one way: app → (ingress, rewriter, editor) → (edits, tiny) → (config, errors); training → rewriter."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "serve_app"

# What each part may import of ours. A part not named here may import anything of ours.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "cached_call": set(),
    "origins": set(),
    "config": {"origins"},
    "request_id": set(),
    "metrics": set(),
    "logs": {"request_id", "errors"},
    "edits": {"edits", "origins", "config", "errors"},
    "tiny": {"tiny", "edits", "config", "errors"},
    "training": {"training", "tiny", "rewriter", "edits"},
    "weights": {"tiny", "config", "errors"},
    "imports": set(),
    "gpu_memory": {"errors"},
    "editor": {"editor", "edits", "weights", "config", "errors", "gpu_memory", "imports", "logs", "metrics"},
    "rewriter": {"rewriter", "edits", "weights", "config", "errors", "gpu_memory", "imports", "logs", "metrics"},
    "handles": {"edits", "errors", "cached_call"},
    "jobs": {"jobs", "edits", "handles", "config", "errors", "logs", "metrics"},
    "ingress": {
        *("ingress", "edits", "origins", "handles", "config", "errors", "logs", "metrics", "request_id"),
        "cached_call",
    },
}
# Outside libraries that a part must not know; deployments and handles are the doors to Ray.
FORBIDDEN: dict[str, set[str]] = {
    "edits": {"ray", "fastapi", "starlette", "torch", "diffusers", "transformers"},
    "gpu_memory": {"ray", "fastapi", "starlette", "diffusers", "transformers"},
    "tiny": {"ray", "fastapi"},
    "training": {"ray", "fastapi"},
    "editor": {"ray", "fastapi", "starlette"},
    "rewriter": {"ray", "fastapi", "starlette"},
    "jobs": {"torch", "diffusers", "transformers", "ray", "fastapi", "starlette"},
    "ingress": {"torch", "diffusers", "transformers", "ray"},
}
DOORS = {
    "editor/deployment.py",
    "editor/metrics.py",
    "rewriter/deployment.py",
    "rewriter/metrics.py",
    "ingress/deployment.py",
    "ingress/metrics.py",
    "jobs/deployment.py",
    "jobs/metrics.py",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(module: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports are not ours"
            names.add(node.module or "")
    return names


def part_of(module: Path) -> str:
    return part(".".join(module.relative_to(PACKAGE.parent).with_suffix("").parts))


def part(name: str) -> str:
    """Of a module of ours; the training of the tiny weights is a part of its own, which nothing below it knows."""
    return "training" if name.startswith("serve_app.tiny.training") else name.split(".")[1]


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_arrow_runs_back(module: Path) -> None:
    ours = {part(name) for name in imported(module) if name.startswith("serve_app.")}
    assert ours <= ALLOWED.get(part_of(module), ours)


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_part_knows_only_its_own_libraries(module: Path) -> None:
    forbidden = FORBIDDEN.get(part_of(module), set())
    if str(module.relative_to(PACKAGE)) in DOORS:
        forbidden = forbidden - {"ray"}
    assert {name.split(".")[0] for name in imported(module)} & forbidden == set()


def test_the_rules_name_real_parts() -> None:
    parts = {part_of(module) for module in modules()}
    assert set(ALLOWED) | set(FORBIDDEN) <= parts
    assert {PACKAGE / door for door in DOORS} <= set(modules())


def test_whoever_looks_for_weights_does_without_the_libraries_that_make_them() -> None:
    """They take seconds: the rewriter, which needs no diffusers, is up a second sooner."""
    tell = "import sys, serve_app.weights; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", tell], text=True).split()
    assert "serve_app.weights" in modules
    assert not {"torch", "diffusers", "transformers"} & set(modules)
