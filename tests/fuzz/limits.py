"""Limits of a case's memory and time, and the settings of the application, scaled down for speed."""

from typing import get_args

from serve_app.config import AppSettings, EditorSettings, LimitSettings, PictureKind, SizeSettings, WeightsSource

MIB = 2**20

SETTINGS = AppSettings(
    editor=EditorSettings(base=WeightsSource(path="tiny:edit")),  # never loaded
    sizes=SizeSettings(output_area_px=64 * 64, vae_area_px=64 * 64, condition_area_px=32 * 32),
    limits=LimitSettings(
        picture_kinds=get_args(PictureKind),
        max_picture_px=1_500_000,
        max_picture_bytes=MIB,
        max_body_bytes=MIB,
        max_side_px=512,
    ),
)

MAX_BYTES_PER_PX = 32
"""Pillow keeps 4 bytes a pixel. At most eight such planes are alive at once: an animated WebP's two canvases and its
frame, the decoded picture, its colours, its alpha, its white background, and the composed or rotated picture."""

SLACK_BYTES = 64 * MIB
"""For memory that does not depend on the picture: heap that is not returned, bodies, LittleCMS tables."""

MAX_GROWTH_BYTES = SETTINGS.limits.max_picture_px * MAX_BYTES_PER_PX + SLACK_BYTES
"""By how much a process may grow while it decodes one picture at a time."""

MAX_CASE_S = 20.0
"""A case that runs longer than this hangs."""

MAX_REFUSAL_BYTES = 4096
"""A refusal is a sentence or two and never echoes a picture."""
