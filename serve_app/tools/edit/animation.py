"""The views of an orbit as one animation."""

from collections.abc import Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from serve_app.edits.provenance import SOURCE_TYPE, marking_packet

FRAME_MS = 250
GIF_MARK = f"Edited with generative AI: {SOURCE_TYPE}".encode()
"""The comment of a GIF whose frames are marked. Pillow writes no XMP to a GIF."""


def animate(frames: Sequence[Path], kind: str) -> bytes:
    """The frames, all of one size, as an animated GIF or WebP file that repeats for ever.

    Raises:
        OSError: a frame is not a picture.
    """
    with ExitStack() as opened:
        pictures = [opened.enter_context(Image.open(frame)) for frame in frames]
        options: dict[str, Any] = {"quality": 90} if kind == "webp" else {}
        if any(SOURCE_TYPE.encode() in picture.info.get("xmp", b"") for picture in pictures):
            options |= {"xmp": marking_packet()} if kind == "webp" else {"comment": GIF_MARK}
        first, *others = (picture.convert("RGB") for picture in pictures)
        buffer = BytesIO()
        first.save(buffer, kind, save_all=True, append_images=others, duration=FRAME_MS, loop=0, **options)
        return buffer.getvalue()
