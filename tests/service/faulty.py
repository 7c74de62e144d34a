"""The application with a device that fails on demand: an edit 80 pixels wide raises a CUDA error, once each time that
the file named in FAULT_VARIABLE is created; one 96 pixels wide always runs out of memory."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.config import AppSettings, EditorSettings
from serve_app.editor import deployment

if TYPE_CHECKING:
    from ray.serve import Application

    from serve_app.editor.model.edit_model import Draft, EditModel

FAULT_VARIABLE = "CAMERA_EDIT_TEST_FAULT"
LOST_WIDTH, LARGE_WIDTH = 80, 96


class Editor(deployment.Editor):
    """The Editor on a faulty device. Only its replicas import torch."""

    def __init__(self, settings: EditorSettings) -> None:
        _break_device()
        super().__init__(settings)


def _break_device() -> None:
    import torch

    from serve_app.editor.model.edit_model import EditModel

    original = EditModel.step

    def step(self: "EditModel", drafts: "Sequence[Draft]") -> None:
        widths = {draft.size.width for draft in drafts}
        fault = Path(os.environ[FAULT_VARIABLE])
        if LOST_WIDTH in widths and fault.exists():
            fault.unlink()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if LARGE_WIDTH in widths:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        original(self, drafts)

    EditModel.step = step  # type: ignore[method-assign]


def build(args: AppSettings) -> "Application":
    from serve_app import app

    vars(app)["Editor"] = Editor
    return app.build(args)
