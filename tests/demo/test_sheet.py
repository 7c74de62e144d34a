"""The contact sheet: its size, its pictures, and that each label leaves ink where it belongs."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFont

from serve_app.demo.sheet import WIDTH, Captioned, Row, contact_sheet, wrapped
from serve_app.edits.request import Pixels
from tests.pictures import pixels_of

RED, BLUE = (220, 20, 20), (20, 20, 220)
LABELS_END, CELLS_BEGIN = 386, 410


def captioned(colour: tuple[int, int, int], size: tuple[int, int] = (300, 300), caption: str = "a.png") -> Captioned:
    return Captioned(Image.new("RGB", size, colour), caption)


ROW = Row("Camera", ("azimuth 45",), (captioned(RED),), (captioned(BLUE),))


def sheet(*rows: Row, heading: str = "demo", notice: str = "random weights") -> Pixels:
    return pixels_of(contact_sheet(rows, heading, notice))


def changed(one: Pixels, other: Pixels) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of all pixels that differ; there must be some."""
    rows, columns = np.nonzero((one != other).any(axis=2))
    assert rows.size > 0
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def test_sheet_grows_by_equal_rows_and_is_the_same_each_time() -> None:
    heights = [sheet(*[ROW] * number).shape[0] for number in (1, 2, 3)]
    assert heights[1] - heights[0] == heights[2] - heights[1] > 200
    assert sheet(ROW).shape[1] == WIDTH
    assert (sheet(ROW, ROW) == sheet(ROW, ROW)).all()


def test_title_and_notes_stand_in_the_label_column() -> None:
    for changed_row in (replace(ROW, title=""), replace(ROW, notes=())):
        left, top, right, _ = changed(sheet(ROW), sheet(changed_row))
        assert left >= 50
        assert right <= LABELS_END
        assert top >= 196


def test_heading_and_notice_stand_above_the_rows() -> None:
    whole = sheet(ROW)
    _, _, _, heading_bottom = changed(whole, sheet(ROW, heading=""))
    _, notice_top, _, notice_bottom = changed(whole, sheet(ROW, notice=""))
    assert heading_bottom < notice_top
    assert notice_bottom < 196


def test_caption_stands_below_its_picture() -> None:
    without = replace(ROW, inputs=(captioned(RED, caption=""),))
    _, top, right, _ = changed(sheet(ROW), sheet(without))
    red_rows, red_columns = np.nonzero((sheet(ROW) == RED).all(axis=2))
    assert top > red_rows.max()
    assert right <= red_columns.max() + 40


def test_what_was_sent_stands_left_of_what_came_back() -> None:
    pixels = sheet(replace(ROW, inputs=(captioned(RED), captioned(RED)), outputs=(captioned(BLUE), captioned(BLUE))))
    red = np.nonzero((pixels == RED).all(axis=2))[1]
    blue = np.nonzero((pixels == BLUE).all(axis=2))[1]
    assert red.min() >= CELLS_BEGIN
    assert red.max() < blue.min()
    assert blue.max() < WIDTH - 50


@pytest.mark.parametrize("size", [(1000, 100), (100, 1000), (16, 16)])
def test_picture_of_any_shape_is_scaled_into_its_cell_with_its_aspect(size: tuple[int, int]) -> None:
    pixels = sheet(replace(ROW, inputs=(captioned(RED, size),)))
    rows, columns = np.nonzero((pixels == RED).all(axis=2))
    width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
    assert width <= 256
    assert height <= 200
    assert width == 256 or height == 200
    assert width / height == pytest.approx(size[0] / size[1], rel=0.05)


def test_text_is_wrapped_at_words_and_long_words_are_cut() -> None:
    font = ImageFont.load_default(17)
    assert isinstance(font, ImageFont.FreeTypeFont)
    text = "give picture 1 the colours of picture 2 " + "x" * 200
    lines = wrapped(text, font, 200)
    assert all(font.getlength(line) <= 200 for line in lines)
    assert " ".join(lines[:-1]) == text.rpartition(" ")[0].strip()
    assert len(lines) > 2
    assert lines[-1].startswith("xxx")
    assert lines[-1].endswith("…")
