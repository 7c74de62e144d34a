"""The application with an engine that costs nothing: each edit's result is its first picture. What remains is what the
service does around the engine."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from serve_app.config import AppSettings, EditorSettings
from serve_app.editor import deployment

if TYPE_CHECKING:
    from ray.serve import Application

    from serve_app.editor.model.edit_model import Draft, EditModel, Prepared
    from serve_app.edits.request import EditRequest, Pictures, Pixels


class Editor(deployment.Editor):
    """The Editor without its model. Only its replicas import torch."""

    def __init__(self, settings: EditorSettings) -> None:
        _remove_model()  # first: the engine keeps the methods that it finds when it has loaded
        super().__init__(settings)


def _remove_model() -> None:
    import torch
    from transformers import BatchFeature

    from serve_app.editor.model.edit_model import Draft, EditModel, Prepared
    from serve_app.editor.model.schedule import Schedule

    def prepare(self: "EditModel", request: "EditRequest", pictures: "Pictures") -> "Prepared":
        schedule = Schedule((0.0,), (0.0,))
        pixels = (((), pictures[0].vae_pixels),)
        return Prepared(request.size.made, schedule, 1.0, (((), BatchFeature()),), pixels, torch.zeros(0))

    def begin(self: "EditModel", edits: "Sequence[Prepared]") -> "list[Draft]":
        nothing = torch.zeros(0)
        return [
            Draft(each.size, each.schedule, 1.0, (), torch.from_numpy(each.pictures[0][1]), nothing) for each in edits
        ]

    def step(self: "EditModel", drafts: "Sequence[Draft]") -> None:
        for draft in drafts:
            draft.index += 1

    def finish(self: "EditModel", draft: "Draft") -> "Pixels":
        pixels: Pixels = draft.references.numpy()
        return pixels

    for method in (prepare, begin, step, finish):
        setattr(EditModel, method.__name__, method)


def build(args: AppSettings) -> "Application":
    from serve_app import app

    vars(app)["Editor"] = Editor
    return app.build(args)
