"""Loads the adapters that are not fused: audited as those that are, and kept as factors in main memory."""

import logging
from collections.abc import Iterable, Mapping

import torch

from serve_app.config import EditorSettings, LoraSettings
from serve_app.editor.loading.lora import Factors as FileFactors
from serve_app.editor.loading.lora import audit_file, describe
from serve_app.editor.loading.transformer import empty_model
from serve_app.editor.model.adapters import BLOCKS, Adapter, AdapterLibrary, Factors
from serve_app.errors import LoraAuditError
from serve_app.weights.locate import MODEL_FILES, locate

logger = logging.getLogger(__name__)


class Adapters:
    """The adapters of an editor that are not fused; any thread may call it.

    Attributes:
        library: where the model looks them up.
    """

    def __init__(self, settings: EditorSettings) -> None:
        self._settings = settings
        self.library = AdapterLibrary()

    def replace(self, loras: Iterable[LoraSettings]) -> None:
        """Load those of `loras` that are not fused, unless they are loaded already, and use no others from now on.

        Raises:
            CheckpointError: a file is not there.
            LoraAuditError: an adapter does not fit the transformer, or adapts more than its blocks.
            ConfigError: the device has no room for the adapters of one edit.
        """
        unfused = [lora for lora in loras if not lora.is_fused]
        known = {_file(lora): adapter for lora, adapter in self.library.current}
        missing = [lora for lora in unfused if _file(lora) not in known]
        if missing:
            model = empty_model(locate(self._settings.base, MODEL_FILES) / "transformer")
            known.update({_file(lora): _load(lora, model, self._settings) for lora in missing})
        self.library.replace([(lora, known[_file(lora)]) for lora in unfused])


def _file(lora: LoraSettings) -> tuple[object, ...]:
    return lora.name, lora.source, lora.file, lora.sha256, lora.expected_modules


def _load(lora: LoraSettings, model: torch.nn.Module, settings: EditorSettings) -> Adapter:
    audited = audit_file(locate(lora.source, [lora.file]) / lora.file, model, lora)
    logger.info("%s", describe(audited, lora))
    return as_adapter(lora.name, audited, getattr(torch, settings.dtype), pinned=settings.device == "cuda")


def as_adapter(name: str, audited: Mapping[str, FileFactors], dtype: torch.dtype, *, pinned: bool) -> Adapter:
    """An audited file as the model uses it.

    Raises:
        LoraAuditError: it adapts more than the transformer's blocks.
    """
    outside = sorted(module for module in audited if not module.startswith(BLOCKS))
    if outside:
        raise LoraAuditError(
            f"LoRA {name} adapts {', '.join(outside)}, which are in no block. Only an adapter with apply: fused may."
        )
    return Adapter(name, {module: _factors(factors, dtype, pinned) for module, factors in audited.items()})


def _factors(factors: FileFactors, dtype: torch.dtype, pinned: bool) -> Factors:
    parts = (factors.down.float() * factors.scale).to(dtype), factors.up.T.to(dtype).contiguous()
    return Factors(*(part.pin_memory() if pinned else part for part in parts))
