"""The application with a device that fails on demand: an edit 80 pixels wide meets a CUDA error, once each time that
the file named in FAULT_VARIABLE is made; one 96 pixels wide never has enough memory."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from ray.serve import Application

from serve_app import app
from serve_app.config import AppSettings, EditorSettings
from serve_app.editor.model import Draft, EditModel

FAULT_VARIABLE = "CAMERA_EDIT_TEST_FAULT"
LOST_WIDTH, LARGE_WIDTH = 80, 96

_sound = EditModel.step


class FaultySettings(EditorSettings):
    """The sound ones. A replica that is given them imports this module, and with it the fault."""


def _step(self: EditModel, drafts: Sequence[Draft]) -> None:
    widths = {draft.size.width for draft in drafts}
    fault = Path(os.environ[FAULT_VARIABLE])
    if LOST_WIDTH in widths and fault.exists():
        fault.unlink()
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if LARGE_WIDTH in widths:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    _sound(self, drafts)


EditModel.step = _step  # type: ignore[method-assign]


def build(args: AppSettings) -> Application:
    faulty = FaultySettings.model_validate(args.editor.model_dump())
    return app.build(args.model_copy(update={"editor": faulty}))
