"""Sizes: default ones as diffusers computes them, requested ones exactly."""

import pytest
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions

from serve_app.config import SizeSettings
from serve_app.edits.sizes import OutputSize, Size, fit_area, output_size

SIZES = SizeSettings()


@pytest.mark.parametrize("source", [(512, 512), (600, 400), (400, 600), (4000, 3000), (1, 1), (1920, 817), (333, 777)])
@pytest.mark.parametrize("area_px", [384 * 384, 1024 * 1024])
def test_free_sizes_equal_diffusers(source: tuple[int, int], area_px: int) -> None:
    width, height = source
    assert fit_area(area_px, width / height) == Size(*calculate_dimensions(area_px, width / height))


def test_a_free_size_keeps_the_aspect_at_one_megapixel() -> None:
    size = Size(1248, 832)
    assert output_size(None, None, Size(600, 400), SIZES) == OutputSize(size, size)


@pytest.mark.parametrize(
    ("width", "height", "made", "final"),
    [
        (320, 192, (320, 192), (320, 192)),
        (321, 177, (336, 192), (321, 177)),
        (300, None, (304, 208), (300, 200)),
        (None, 200, (304, 208), (300, 200)),
        (64, 2048, (64, 2048), (64, 2048)),
    ],
)
def test_given_sides_come_back_exactly(
    width: int | None, height: int | None, made: tuple[int, int], final: tuple[int, int]
) -> None:
    assert output_size(width, height, Size(600, 400), SIZES) == OutputSize(Size(*made), Size(*final))
