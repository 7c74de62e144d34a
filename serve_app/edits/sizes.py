"""Picture sizes: of the model's inputs and of its output."""

import math
from dataclasses import dataclass

from serve_app.config import SizeSettings

# The VAE downsamples by 8 and the transformer takes 2x2 patches, so pictures are drawn in multiples of 16 px.
MADE_MULTIPLE_PX = 16
# Sizes that the client does not set are multiples of 32 as in diffusers' QwenImageEditPlusPipeline.
FREE_MULTIPLE_PX = 32


TOKEN_PX = MADE_MULTIPLE_PX
"""The side of the square of pixels that one picture token stands for."""

LATENT_PX = TOKEN_PX // 2
"""The same for one of the VAE's latents, of which two by two make a token."""


@dataclass(frozen=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def num_tokens(self) -> int:
        """Tokens of a picture of this size."""
        return (self.width // TOKEN_PX) * (self.height // TOKEN_PX)


@dataclass(frozen=True)
class OutputSize:
    """`final` is the size of the output; `made` is the size that the model draws: `final` rounded up to multiples of
    16."""

    made: Size
    final: Size


def fit_area(area_px: int, aspect: float) -> Size:
    """The size of about `area_px` pixels with the aspect (width / height), both sides multiples of 32 and at least 32.

    Same rounding as `calculate_dimensions` in diffusers' QwenImageEditPlusPipeline.
    """
    width = math.sqrt(area_px * aspect)
    height = width / aspect
    return Size(
        max(FREE_MULTIPLE_PX, round(width / FREE_MULTIPLE_PX) * FREE_MULTIPLE_PX),
        max(FREE_MULTIPLE_PX, round(height / FREE_MULTIPLE_PX) * FREE_MULTIPLE_PX),
    )


def output_size(width: int | None, height: int | None, source: Size, sizes: SizeSettings) -> OutputSize:
    """The output's size for a first picture of size `source`.

    Without width and height: the source's aspect at the configured area. With one of them: the other keeps the aspect.
    With both: exactly that size. Sizes that are set are drawn at the next multiple of 16 and resampled.
    """
    aspect = source.width / source.height
    if width is None and height is None:
        free = fit_area(sizes.output_area_px, aspect)
        return OutputSize(made=free, final=free)
    if width is None:
        width = max(1, round((height or 1) * aspect))
    if height is None:
        height = max(1, round(width / aspect))
    return OutputSize(made=Size(_round_up(width), _round_up(height)), final=Size(width, height))


def _round_up(side_px: int) -> int:
    return math.ceil(side_px / MADE_MULTIPLE_PX) * MADE_MULTIPLE_PX
