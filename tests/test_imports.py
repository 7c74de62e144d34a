"""Imports point one way: app → (ingress, jobs, rewriter, editor) → (serving, edits) → (config, net, errors, weights).

`tools` may import anything, nothing but the command line imports `tools`. `tiny`, the toy weights, is on the same
level as `weights`, which locates them.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "serve_app"

# What the dialects share.
INGRESS = {"ingress", "ingress.limits", "ingress.parsing", "ingress.pictures"}
# What each part may import of serve_app. A module belongs to the longest of these names that its own starts with; only
# `tools`, which may import anything, has no entry.
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "net": {"net"},
    "config": {"net"},
    "weights": {"weights", "tiny", "config", "errors"},
    "weights.faults": set(),
    "weights.gpu_memory": {"errors"},
    "edits": {"edits", "config", "errors"},
    "tiny": {"tiny", "edits", "config", "errors"},
    "serving": {"serving", "edits", "config", "errors"},
    "editor": {"editor", "editor.engine", "editor.engine.stats", "editor.loading", "edits", "config", "errors"},
    "editor.engine": {
        "editor.engine",
        "editor.engine.stats",
        "editor.model",
        "weights.faults",
        "edits",
        "config",
        "errors",
    },
    "editor.engine.stats": set(),
    "editor.model": {"editor.model", "edits", "config", "errors"},
    "editor.loading": {"editor.loading", "editor.model", "weights", "weights.gpu_memory", "edits", "config", "errors"},
    "rewriter": {
        "rewriter",
        "rewriter.endpoint",
        "edits",
        "weights",
        "weights.faults",
        "weights.gpu_memory",
        "config",
        "errors",
    },
    "rewriter.endpoint": {"rewriter", "net", "edits", "config", "errors"},
    "jobs": {"jobs", "jobs.stores", "net", "edits", "config", "errors"},
    "jobs.stores": {"jobs.stores", "edits", "config", "errors"},
    "ingress": {"ingress.mcp", "ingress.openai", "ingress.runpod", "serving", "edits", "config", "errors"} | INGRESS,
    "ingress.limits": {"ingress.limits", "ingress", "edits", "config", "errors"},
    "ingress.mcp": {"ingress.mcp", "edits", "config", "errors"} | INGRESS,
    "ingress.openai": {"ingress.openai", "edits", "config", "errors"} | INGRESS,
    "ingress.parsing": {"ingress.parsing", "ingress.limits", "edits", "config", "errors"},
    "ingress.pictures": {"ingress.pictures", "ingress", "net", "edits", "config", "errors"},
    "ingress.runpod": {"ingress.runpod", "net", "edits", "config", "errors"} | INGRESS,
    "app": {"ingress", "ingress.runpod", "jobs", "rewriter", "editor", "serving", "config"},
    "cli": {"tools", "tools.training", "tiny", "errors"},
    "tools.training": {"tools.training", "tiny", "rewriter", "edits"},
}
# Third-party libraries that a part must not import; only `serving` and RAY_MODULES may import Ray.
FORBIDDEN: dict[str, set[str]] = {
    "errors": {"ray", "fastapi", "starlette", "torch", "diffusers", "transformers"},
    "net": {"ray", "fastapi", "starlette", "torch", "diffusers", "transformers"},
    "config": {"ray", "fastapi", "starlette", "torch", "diffusers", "transformers"},
    "edits": {"ray", "fastapi", "starlette", "torch", "diffusers", "transformers"},
    "weights": {"ray", "fastapi", "starlette"},
    "weights.faults": {"ray", "fastapi", "starlette", "diffusers", "transformers"},
    "weights.gpu_memory": {"ray", "fastapi", "starlette", "diffusers", "transformers"},
    "tiny": {"ray", "fastapi"},
    "tools.training": {"ray", "fastapi"},
    "serving": {"fastapi", "starlette", "torch", "diffusers", "transformers"},
    "editor": {"ray", "fastapi", "starlette"},
    "editor.engine": {"ray", "fastapi", "starlette"},
    "editor.engine.stats": {"ray", "fastapi", "starlette", "torch", "diffusers", "transformers"},
    "editor.model": {"ray", "fastapi", "starlette"},
    "editor.loading": {"ray", "fastapi", "starlette"},
    "rewriter": {"ray", "fastapi", "starlette"},
    "rewriter.endpoint": {"ray", "fastapi", "starlette", "torch", "diffusers", "transformers"},
    "jobs": {"torch", "diffusers", "transformers", "ray", "fastapi", "starlette"},
    "jobs.stores": {"torch", "diffusers", "transformers", "ray", "fastapi", "starlette"},
    "ingress": {"torch", "diffusers", "transformers", "ray"},
    "ingress.limits": {"torch", "diffusers", "transformers", "ray"},
    "ingress.mcp": {"torch", "diffusers", "transformers", "ray"},
    "ingress.openai": {"torch", "diffusers", "transformers", "ray"},
    "ingress.parsing": {"torch", "diffusers", "transformers", "ray"},
    "ingress.pictures": {"torch", "diffusers", "transformers", "ray", "fastapi", "starlette"},
    "ingress.runpod": {"torch", "diffusers", "transformers", "ray"},
}
# These may import Ray and `serving`.
RAY_MODULES = {
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
    """The modules that a module imports, and of each `from A import b` also `A.b`: it may be a module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: use an absolute import"
            origin = node.module or ""
            names |= {origin} | {f"{origin}.{alias.name}" for alias in node.names if is_own(f"{origin}.{alias.name}")}
    return names


def is_own(name: str) -> bool:
    """Whether `name` is a module or package of serve_app."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    return name.startswith("serve_app.") and (path.is_dir() or path.with_suffix(".py").is_file())


def part_of(module: Path) -> str:
    return part(".".join(module.relative_to(PACKAGE.parent).with_suffix("").parts))


def part(name: str) -> str:
    """The part that a module of serve_app belongs to."""
    words = name.split(".")[1:]
    named = [".".join(words[:length]) for length in range(len(words), 0, -1)]
    return next((each for each in named if each in ALLOWED), words[0])


def may_import(module: Path) -> set[str]:
    own = part_of(module)
    return ALLOWED[own] | {"serving"} if str(module.relative_to(PACKAGE)) in RAY_MODULES else ALLOWED[own]


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_part_imports_only_what_it_may(module: Path) -> None:
    parts = {part(name) for name in imported(module) if name.startswith("serve_app.")}
    if part_of(module) != "tools":
        assert parts <= may_import(module)


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_part_imports_a_forbidden_library(module: Path) -> None:
    forbidden = FORBIDDEN.get(part_of(module), set())
    if str(module.relative_to(PACKAGE)) in RAY_MODULES:
        forbidden = forbidden - {"ray"}
    assert {name.split(".")[0] for name in imported(module)} & forbidden == set()


def test_the_rules_name_real_parts() -> None:
    parts = {part_of(module) for module in modules()}
    assert set(ALLOWED) | set(FORBIDDEN) <= parts
    assert {PACKAGE / module for module in RAY_MODULES} <= set(modules())


def test_each_part_has_a_rule() -> None:
    assert {part_of(module) for module in modules()} - set(ALLOWED) == {"tools"}


def test_locating_weights_imports_no_model_libraries() -> None:
    """Importing them takes seconds: the rewriter, which needs no diffusers, starts a second sooner."""
    code = "import sys, serve_app.weights.locate; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "serve_app.weights.locate" in modules
    assert not {"torch", "diffusers", "transformers"} & set(modules)
