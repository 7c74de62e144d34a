"""The four ways to ask for an edit, as the demo shows them."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """One request of the demo.

    Attributes:
        name: stem of its files.
        num_pictures: how many of the demo's pictures it sends, from the first on.
        fields: its RunPod `input` but for the pictures.
        notes: what is asked, for the contact sheet.
    """

    name: str
    title: str
    num_pictures: int
    fields: Mapping[str, object]
    notes: tuple[str, ...]

    def payload(self, pictures: Sequence[bytes]) -> dict[str, object]:
        """The body for `/runsync`; `pictures` are files, of which the mode takes as many as it needs."""
        encoded = [base64.b64encode(picture).decode("ascii") for picture in pictures[: self.num_pictures]]
        sent: dict[str, object] = {"image": encoded[0]} if len(encoded) == 1 else {"images": encoded}
        return {"input": sent | dict(self.fields)}


_SEASONS = ("let it be a golden autumn day", "cover everything with fresh snow")
_STYLE = "give picture 1 the colours and the mood of picture 2"

MODES = (
    Mode(
        "camera",
        "Camera",
        1,
        {"prompt": "the same scene", "azimuth": 45, "elevation": 30, "distance": 1.0},
        ("azimuth 45, elevation 30, distance 1.0", "“the same scene”"),
    ),
    Mode(
        "rewriting",
        "Rewriting",
        1,
        {"prompt": "make it better", "rewrite_prompt": True},
        ("“make it better”, to be rewritten",),
    ),
    Mode("batch", "Batch", 2, {"prompt": list(_SEASONS)}, tuple(f"“{season}”" for season in _SEASONS)),
    Mode("references", "Two references", 2, {"prompt": _STYLE}, (f"“{_STYLE}”",)),
)
