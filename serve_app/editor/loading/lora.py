"""LoRA files: read and audited tensor by tensor.

A loader that skips unknown tensors silently gives a weaker model, and one that drops `alpha` a wrong one. So every
tensor of a file must match a module, and every module must have both factors. `fuse.py` checks what was fused.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import nn

from serve_app.config import LoraSettings
from serve_app.errors import LoraAuditError
from serve_app.weights.files import sha256_of

Role = Literal["down", "up", "alpha"]

PREFIXES = ("transformer.", "diffusion_model.", "base_model.model.")
"""Prefixes that trainers put before the transformer's module names. They are optional."""

FLAT_PREFIX = "lora_unet_"
"""kohya's prefix: the module name follows with its dots turned into underscores."""

_SUFFIXES: dict[str, Role] = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".alpha": "alpha",
    ".lora_A.alpha": "alpha",
    ".lora_B.alpha": "alpha",
}
_METADATA_KEY = "lora_adapter_metadata"  # where diffusers keeps a LoraConfig in a safetensors header
_MAX_LISTED = 20
_APPLIED = {"fused": "fused", "camera": "with a camera pose", "request": "on request"}


@dataclass(frozen=True)
class Factors:
    """One module's update: `alpha / rank * up @ down`.

    Attributes:
        down: shape (rank, in_features).
        up: shape (out_features, rank).
        alpha: None: equal to the rank, so that the scale is 1.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


Adapter = dict[str, Factors]
"""An audited LoRA file: module name in the transformer → factors."""


def audit_file(path: Path, transformer: nn.Module, settings: LoraSettings) -> Adapter:
    """Read and audit one file; see `audit`.

    Raises:
        LoraAuditError: also if the file's SHA-256 is not that of the settings.
    """
    _require_digest(path, settings)
    tensors, metadata = read_file(path)
    return audit(tensors, transformer, settings, metadata)


def _require_digest(path: Path, settings: LoraSettings) -> None:
    if settings.sha256 is None or not path.is_file():
        return
    found = sha256_of(path)
    if found != settings.sha256:
        raise LoraAuditError(
            f"The LoRA file {path} has the SHA-256 {found}, editor.loras says {settings.sha256}: it is damaged, or "
            "another version. Download it again, or change sha256 if you trust the file."
        )


def read_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its header's metadata.

    Raises:
        LoraAuditError: the file is missing or not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as problem:  # safetensors raises its own, undocumented kinds
        raise LoraAuditError(f"The LoRA file {path} could not be read as safetensors: {problem}") from problem


def audit(
    tensors: Mapping[str, torch.Tensor],
    transformer: nn.Module,
    settings: LoraSettings,
    metadata: Mapping[str, str] | None = None,
) -> Adapter:
    """Assign every tensor to its module.

    Reads only shapes and alphas, so transformer and factors may be on the meta device.

    Raises:
        LoraAuditError: tensors without a module, a factor without the other one, shapes that do not fit, modules
            adapted in some blocks only, or another number of modules than the settings expect.
    """
    linears = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    found, strays = _sort(tensors, set(linears))
    alpha = _alpha_from_metadata(metadata or {})
    problems = [f"{key}: no module of the transformer has this name" for key in strays]
    adapter: Adapter = {}
    for module, parts in found.items():
        if "down" not in parts or "up" not in parts:
            problems.append(f"{module}: only {' and '.join(sorted(parts))}, the other factor is missing")
            continue
        own_alpha = parts["alpha"].item() if "alpha" in parts else alpha
        adapter[module] = Factors(parts["down"], parts["up"], own_alpha)
        problems.extend(_shape_problems(module, adapter[module], linears[module]))
    problems.extend(_gaps(adapter, set(linears)))
    if settings.expected_modules not in (None, len(adapter)):
        problems.append(f"{len(adapter)} modules are adapted, expected_modules says {settings.expected_modules}")
    if problems or not adapter:
        title = f"LoRA {settings.name} ({settings.file}) does not fit this model"
        raise LoraAuditError(_report(title, problems or ["the file adapts no module at all"]))
    return adapter


def describe(adapter: Adapter, settings: LoraSettings) -> str:
    """A log line with the number of modules, their ranks and scales, and how the adapter is applied."""
    ranks = sorted({factors.rank for factors in adapter.values()})
    scales = sorted({round(factors.scale, 6) for factors in adapter.values()})
    return (
        f"LoRA {settings.name}: {len(adapter)} modules, rank {'/'.join(map(str, ranks))}, "
        f"alpha/rank {'/'.join(map(str, scales))}, {_APPLIED[settings.apply]} at weight {settings.weight}"
    )


def _sort(
    tensors: Mapping[str, torch.Tensor], modules: set[str]
) -> tuple[dict[str, dict[Role, torch.Tensor]], list[str]]:
    flat = {name.replace(".", "_"): name for name in modules}
    found: dict[str, dict[Role, torch.Tensor]] = defaultdict(dict)
    strays = []
    for key, tensor in tensors.items():
        module, role = _module_of(key, modules, flat)
        if module is None or role is None or role in found[module]:
            strays.append(key)
        else:
            found[module][role] = tensor
    return {module: parts for module, parts in found.items() if parts}, strays


def _module_of(key: str, modules: set[str], flat: Mapping[str, str]) -> tuple[str | None, Role | None]:
    # The longest suffix first: `.lora_B.alpha` also ends in `.alpha`.
    suffix = max((suffix for suffix in _SUFFIXES if key.endswith(suffix)), key=len, default=None)
    if suffix is None:
        return None, None
    name = key.removesuffix(suffix)
    if name.startswith(FLAT_PREFIX):
        return flat.get(name.removeprefix(FLAT_PREFIX)), _SUFFIXES[suffix]
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return (name if name in modules else None), _SUFFIXES[suffix]


def _shape_problems(module: str, factors: Factors, linear: nn.Linear) -> list[str]:
    fitting = (factors.rank, linear.in_features), (linear.out_features, factors.rank)
    shapes = tuple(factors.down.shape), tuple(factors.up.shape)
    return [] if shapes == fitting else [f"{module}: factors of shapes {shapes} do not fit, {fitting} would"]


def _gaps(adapter: Adapter, modules: set[str]) -> list[str]:
    """Problems where a kind of module is adapted in some blocks only."""

    def kind(name: str) -> str:
        return re.sub(r"\.\d+\.", ".N.", name, count=1)

    adapted = {kind(name) for name in adapter}
    missing = sorted(name for name in modules - set(adapter) if kind(name) in adapted)
    return [f"{name}: not in the file, though its twins in other blocks are" for name in missing]


def _alpha_from_metadata(metadata: Mapping[str, str]) -> float | None:
    if _METADATA_KEY not in metadata:
        return None
    config = {key.rpartition(".")[2]: value for key, value in json.loads(metadata[_METADATA_KEY]).items()}
    unusual = [key for key in ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern") if config.get(key)]
    if unusual:
        raise LoraAuditError(f"The LoRA file's header asks for {', '.join(unusual)}, which is not supported.")
    return float(config["lora_alpha"]) if config.get("lora_alpha") is not None else None


def _report(title: str, problems: list[str]) -> str:
    listed = "\n".join(f"  {problem}" for problem in problems[:_MAX_LISTED])
    rest = len(problems) - _MAX_LISTED
    more = f"\n  … and {rest} more" if rest > 0 else ""
    return f"{title}:\n{listed}{more}"
