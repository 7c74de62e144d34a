"""The contact sheet: its size, its pictures, and that each label leaves ink where it belongs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from serve_app.edits.request import Pixels
from serve_app.tools.demo.run import NOTICE
from serve_app.tools.demo.sheet import WIDTH, Captioned, Card, contact_sheet, wrapped
from tests.pictures import pixels_of

RED, BLUE = (220, 20, 20), (20, 20, 220)
MARGIN, HEADER_BOTTOM = 47, 150
LARGEST, ARROW_WIDTH = 192, 48


def captioned(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64), caption: str = "a.png") -> Captioned:
    return Captioned(Image.new("RGB", size, colour), caption)


CARD = Card("Style", "1.0 s", ("one prompt",), (captioned(RED),), (captioned(BLUE),))
ORBIT = replace(CARD, outputs=(captioned(BLUE),) * 8)


def sheet(*cards: Card, heading: str = "demo", notice: str = "a toy world") -> Pixels:
    return pixels_of(contact_sheet(cards, heading, notice))


def changed(one: Pixels, other: Pixels) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of all pixels that differ; there must be some."""
    return box((one != other).any(axis=2))


def shown(pixels: Pixels, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The box of all pixels of this colour; there must be some."""
    return box((pixels == colour).all(axis=2))


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    assert rows.size > 0
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def widths(pixels: Pixels, colour: tuple[int, int, int]) -> list[int]:
    """How wide the pictures of this colour are, from left to right; gaps must lie between them."""
    has = (pixels == colour).all(axis=2).any(axis=0).astype(np.int8)
    steps = np.diff(has, prepend=0, append=0)
    return [int(width) for width in np.flatnonzero(steps == -1) - np.flatnonzero(steps == 1)]


def test_sheet_grows_by_equal_lines_and_is_the_same_each_time() -> None:
    heights = [sheet(*[ORBIT] * number).shape[0] for number in (1, 2, 3)]
    assert heights[1] - heights[0] == heights[2] - heights[1] > 200
    assert sheet(ORBIT).shape[1] == WIDTH
    assert np.array_equal(sheet(ORBIT, ORBIT), sheet(ORBIT, ORBIT))


def test_eight_pictures_stand_in_one_line_and_fill_it() -> None:
    pixels = sheet(ORBIT)
    assert widths(pixels, BLUE) == widths(pixels, RED) * 8
    assert widths(pixels, BLUE)[0] >= 128
    _, top, right, bottom = shown(pixels, BLUE)
    assert WIDTH - MARGIN - 9 <= right <= WIDTH - MARGIN
    assert bottom - top == widths(pixels, BLUE)[0]


def test_small_cards_share_a_line_until_their_pictures_would_be_too_small() -> None:
    one, three, four, five = (sheet(*[CARD] * number) for number in (1, 3, 4, 5))
    assert widths(one, BLUE) == [LARGEST]
    assert widths(three, BLUE) == [187] * 3
    assert widths(four, BLUE) == [129] * 4
    assert four.shape[0] < one.shape[0]
    assert five.shape[0] > one.shape[0] + LARGEST


@pytest.mark.parametrize("bare", [{"title": ""}, {"time": ""}, {"notes": ("",)}], ids=lambda bare: next(iter(bare)))
def test_title_time_and_notes_stand_above_their_own_pictures(bare: dict[str, Any]) -> None:
    whole = sheet(CARD, CARD)
    left, top, right, bottom = changed(whole, sheet(replace(CARD, **bare), CARD))
    assert left >= MARGIN
    assert right <= MARGIN + 2 * LARGEST + ARROW_WIDTH
    assert top > HEADER_BOTTOM
    assert bottom < shown(whole, RED)[1]


def test_long_notes_are_wrapped_and_push_the_pictures_of_the_line_down() -> None:
    longer = replace(CARD, notes=("one prompt " * 20,))
    whole, pushed = sheet(CARD, CARD), sheet(longer, CARD)
    assert shown(pushed, RED)[1] > shown(whole, RED)[1] + 40
    assert widths(pushed, RED) == widths(whole, RED)
    assert pushed.shape[0] - whole.shape[0] == shown(pushed, RED)[1] - shown(whole, RED)[1]


def test_heading_and_notice_stand_above_the_cards() -> None:
    whole = sheet(CARD)
    _, _, _, heading_bottom = changed(whole, sheet(CARD, heading=""))
    _, notice_top, _, notice_bottom = changed(whole, sheet(CARD, notice="a"))
    assert heading_bottom < notice_top
    assert notice_bottom < HEADER_BOTTOM


def test_long_notice_is_wrapped_and_the_demos_own_needs_one_line() -> None:
    assert sheet(CARD, notice=NOTICE).shape == sheet(CARD).shape
    assert shown(sheet(CARD, notice=NOTICE * 2), RED)[1] == shown(sheet(CARD), RED)[1] + 26


def test_caption_stands_below_its_picture_and_is_as_narrow() -> None:
    whole = sheet(replace(CARD, inputs=(captioned(RED, caption="make it night " * 4),)))
    left, top, right, bottom = changed(whole, sheet(replace(CARD, inputs=(captioned(RED, caption=". . " * 20),))))
    picture = shown(whole, RED)
    assert top > picture[3]
    assert bottom < whole.shape[0] - 20
    assert picture[0] <= left
    assert right <= picture[2]


def test_what_was_sent_stands_left_of_what_came_back() -> None:
    pixels = sheet(replace(CARD, inputs=(captioned(RED),) * 2, outputs=(captioned(BLUE),) * 2))
    red, blue = shown(pixels, RED), shown(pixels, BLUE)
    assert red[0] == MARGIN
    assert red[2] + ARROW_WIDTH == blue[0]
    assert widths(pixels, RED) == widths(pixels, BLUE) == [LARGEST] * 2


@pytest.mark.parametrize("size", [(1000, 100), (100, 1000), (16, 16)])
def test_picture_of_any_shape_is_scaled_into_its_cell_with_its_aspect(size: tuple[int, int]) -> None:
    left, top, right, bottom = shown(sheet(replace(CARD, inputs=(captioned(RED, size),))), RED)
    assert max(right - left, bottom - top) == LARGEST
    assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1], rel=0.05)
    assert (left + right) / 2 == pytest.approx(MARGIN + LARGEST / 2, abs=1)


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
