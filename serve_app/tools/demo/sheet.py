"""The contact sheet: the pictures sent and received, one card for each request."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

# All lengths in pixels.
WIDTH = 1440
_MARGIN, _GAP = 47, 24
_CONTENT_WIDTH = WIDTH - 2 * _MARGIN
_CELL_GAP, _CARD_GAP, _ARROW_WIDTH = 8, 40, 48
_MIN_CELL, _MAX_CELL = 120, 192
_TITLE_HEIGHT, _NOTE_HEIGHT, _CAPTION_HEIGHT = 38, 24, 20

_PAPER, _INK, _FAINT, _LINE = (252, 251, 248), (38, 40, 46), (110, 112, 120), (226, 223, 216)
_NOTICE_PAPER, _NOTICE_INK = (255, 240, 204), (110, 70, 0)


@dataclass(frozen=True)
class Captioned:
    """A picture and the text below it."""

    picture: Image.Image
    caption: str


@dataclass(frozen=True)
class Card:
    """One request: its name, its duration, notes (a paragraph each), and the pictures sent and received."""

    title: str
    time: str
    notes: tuple[str, ...]
    inputs: tuple[Captioned, ...]
    outputs: tuple[Captioned, ...]

    @property
    def num_cells(self) -> int:
        return len(self.inputs) + len(self.outputs)

    @property
    def between(self) -> int:
        """The width in pixels that is not cells: the arrow and the gaps."""
        return _ARROW_WIDTH + _CELL_GAP * (self.num_cells - 2)

    def width(self, cell: int) -> int:
        return self.num_cells * cell + self.between


@dataclass(frozen=True)
class _Line:
    """Cards side by side, with cells as large as the sheet's width allows."""

    cards: tuple[Card, ...]

    @property
    def cell(self) -> int:
        free = _CONTENT_WIDTH - sum(card.between for card in self.cards) - _CARD_GAP * (len(self.cards) - 1)
        return min(_MAX_CELL, free // sum(card.num_cells for card in self.cards))

    @property
    def label_height(self) -> int:
        return _TITLE_HEIGHT + max(_NOTE_HEIGHT * len(_note_lines(card, self.cell)) for card in self.cards) + 10

    @property
    def height(self) -> int:
        shown = [each for card in self.cards for each in (*card.inputs, *card.outputs)]
        captions = max(len(_caption_lines(each, self.cell)) for each in shown)
        return self.label_height + self.cell + 10 + _CAPTION_HEIGHT * captions + 2 * _GAP


def contact_sheet(cards: Sequence[Card], heading: str, notice: str) -> Image.Image:
    """The cards in lines, under a heading and a notice in a box: mode RGB, `WIDTH` wide."""
    lines = _in_lines(cards)
    notice_lines = wrapped(notice, _font(20), _CONTENT_WIDTH - 36)
    top = 98 + 26 * len(notice_lines) + 22 + _GAP
    sheet = Image.new("RGB", (WIDTH, top + sum(line.height for line in lines) + _MARGIN - _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _draw_header(pen, heading, notice_lines)
    for line in lines:
        _draw_line(sheet, pen, line, top)
        top += line.height
    return sheet


def _in_lines(cards: Sequence[Card]) -> list[_Line]:
    """Arrange cards in lines: a card joins the last line unless its cells would become too small."""
    lines: list[_Line] = []
    for card in cards:
        longer = _Line((*lines[-1].cards, card)) if lines else _Line((card,))
        if lines and longer.cell >= _MIN_CELL:
            lines[-1] = longer
        else:
            lines.append(_Line((card,)))
    return lines


def _draw_header(pen: ImageDraw.ImageDraw, heading: str, notice_lines: Sequence[str]) -> None:
    pen.text((_MARGIN, 40), heading, _INK, _font(34))
    bottom = 98 + 26 * len(notice_lines) + 22
    pen.rounded_rectangle((_MARGIN, 98, WIDTH - _MARGIN, bottom), 8, _NOTICE_PAPER)
    for index, text in enumerate(notice_lines):
        pen.text((_MARGIN + 18, 122 + 26 * index), text, _NOTICE_INK, _font(20), anchor="lm")


def _draw_line(sheet: Image.Image, pen: ImageDraw.ImageDraw, line: _Line, top: int) -> None:
    left, cell = _MARGIN, line.cell
    for card in line.cards:
        pen.line((left, top, left + card.width(cell), top), _LINE, 2)
        _draw_label(pen, card, cell, (left, top + _GAP))
        _draw_pictures(sheet, pen, card, cell, (left, top + _GAP + line.label_height))
        left += card.width(cell) + _CARD_GAP


def _draw_label(pen: ImageDraw.ImageDraw, card: Card, cell: int, at: tuple[int, int]) -> None:
    baseline = at[1] + 22
    pen.text((at[0], baseline), card.title, _INK, _font(25), anchor="ls")
    pen.text((at[0] + card.width(cell), baseline), card.time, _FAINT, _font(17), anchor="rs")
    for index, text in enumerate(_note_lines(card, cell)):
        pen.text((at[0], at[1] + _TITLE_HEIGHT + _NOTE_HEIGHT * index), text, _FAINT, _font(17))


def _draw_pictures(sheet: Image.Image, pen: ImageDraw.ImageDraw, card: Card, cell: int, at: tuple[int, int]) -> None:
    left, top = at
    for each in card.inputs:
        _draw_cell(sheet, pen, each, cell, (left, top))
        left += cell + _CELL_GAP
    left -= _CELL_GAP
    _draw_arrow(pen, left, top + cell // 2)
    left += _ARROW_WIDTH
    for each in card.outputs:
        _draw_cell(sheet, pen, each, cell, (left, top))
        left += cell + _CELL_GAP


def _draw_cell(sheet: Image.Image, pen: ImageDraw.ImageDraw, shown: Captioned, cell: int, at: tuple[int, int]) -> None:
    """Draw the picture centred and as large as fits the cell, with its caption below the cell."""
    picture = ImageOps.contain(shown.picture, (cell, cell), Image.Resampling.BICUBIC)
    sheet.paste(picture, (at[0] + (cell - picture.width) // 2, at[1] + (cell - picture.height) // 2))
    for index, text in enumerate(_caption_lines(shown, cell)):
        place = at[0] + cell / 2, at[1] + cell + 10 + _CAPTION_HEIGHT * index
        pen.text(place, text, _FAINT, _font(16), anchor="ma")


def _draw_arrow(pen: ImageDraw.ImageDraw, x: int, y: int) -> None:
    left, right = x + 12, x + _ARROW_WIDTH - 12
    pen.line((left, y, right - 8, y), _FAINT, 3)
    pen.polygon(((right, y), (right - 12, y - 8), (right - 12, y + 8)), _FAINT)


def _note_lines(card: Card, cell: int) -> list[str]:
    return [line for note in card.notes for line in wrapped(note, _font(17), card.width(cell))]


def _caption_lines(shown: Captioned, cell: int) -> list[str]:
    return wrapped(shown.caption, _font(16), cell)


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels; a longer word gets its own line and is cut."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(_cut(word, font, width))
    return lines


def _cut(word: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(word) <= width:
        return word
    return next(
        f"{word[:end]}…" for end in range(len(word), -1, -1) if font.getlength(f"{word[:end]}…") <= width or end == 0
    )


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's embedded font; without FreeType it is a bitmap of one size.
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise OSError("This Pillow was built without FreeType, which the contact sheet's labels need.")
    return font
