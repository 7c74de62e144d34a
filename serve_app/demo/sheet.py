"""The contact sheet: what was sent and what came back, one row for each mode."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

# All lengths in pixels.
_MARGIN, _GAP = 56, 24
_LABEL_WIDTH = 330
_CELL_WIDTH, _CELL_HEIGHT = 256, 200
_CAPTION_HEIGHT = 30
_ARROW_WIDTH = 72
_MAX_CELLS = 2  # on each side of the arrow
_ROW_HEIGHT = _CELL_HEIGHT + _CAPTION_HEIGHT + 2 * _GAP
_HEADER_HEIGHT = 196

_PAPER, _INK, _FAINT, _LINE = (252, 251, 248), (38, 40, 46), (110, 112, 120), (226, 223, 216)
_NOTICE_PAPER, _NOTICE_INK = (255, 240, 204), (110, 70, 0)

_INPUTS_X = _MARGIN + _LABEL_WIDTH + _GAP
_ARROW_X = _INPUTS_X + _MAX_CELLS * (_CELL_WIDTH + _GAP) - _GAP
_OUTPUTS_X = _ARROW_X + _ARROW_WIDTH
WIDTH = _OUTPUTS_X + _MAX_CELLS * (_CELL_WIDTH + _GAP) - _GAP + _MARGIN


@dataclass(frozen=True)
class Captioned:
    """A picture and what stands below it."""

    picture: Image.Image
    caption: str


@dataclass(frozen=True)
class Row:
    """One request: its name, notes (each one paragraph), and up to two pictures each way."""

    title: str
    notes: tuple[str, ...]
    inputs: tuple[Captioned, ...]
    outputs: tuple[Captioned, ...]


def contact_sheet(rows: Sequence[Row], heading: str, notice: str) -> Image.Image:
    """The rows below each other, under a heading and a notice in a box: mode RGB, `WIDTH` wide."""
    sheet = Image.new("RGB", (WIDTH, _HEADER_HEIGHT + len(rows) * _ROW_HEIGHT + _MARGIN - _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _draw_header(pen, heading, notice)
    for index, row in enumerate(rows):
        _draw_row(sheet, pen, row, _HEADER_HEIGHT + index * _ROW_HEIGHT)
    return sheet


def _draw_header(pen: ImageDraw.ImageDraw, heading: str, notice: str) -> None:
    pen.text((_MARGIN, 40), heading, _INK, _font(34))
    box = (_MARGIN, 98, WIDTH - _MARGIN, 146)
    pen.rounded_rectangle(box, 8, _NOTICE_PAPER)
    pen.text((_MARGIN + 18, 122), notice, _NOTICE_INK, _font(20), anchor="lm")
    pen.text((_INPUTS_X, 184), "sent", _FAINT, _font(17), anchor="ls")
    pen.text((_OUTPUTS_X, 184), "came back", _FAINT, _font(17), anchor="ls")


def _draw_row(sheet: Image.Image, pen: ImageDraw.ImageDraw, row: Row, top: int) -> None:
    pen.line((_MARGIN, top, WIDTH - _MARGIN, top), _LINE, 2)
    top += _GAP
    _draw_label(pen, row, top)
    # Those sent stand close to the arrow.
    first = _MAX_CELLS - len(row.inputs)
    for index, each in enumerate(row.inputs):
        _draw_cell(sheet, pen, each, (_INPUTS_X + (first + index) * (_CELL_WIDTH + _GAP), top))
    _draw_arrow(pen, top + _CELL_HEIGHT // 2)
    for index, each in enumerate(row.outputs):
        _draw_cell(sheet, pen, each, (_OUTPUTS_X + index * (_CELL_WIDTH + _GAP), top))


def _draw_label(pen: ImageDraw.ImageDraw, row: Row, top: int) -> None:
    pen.text((_MARGIN, top), row.title, _INK, _font(25))
    top += 42
    for note in row.notes:
        lines = wrapped(note, _font(17), _LABEL_WIDTH)
        pen.multiline_text((_MARGIN, top), "\n".join(lines), _FAINT, _font(17), spacing=6)
        top += 25 * len(lines) + 8


def _draw_cell(sheet: Image.Image, pen: ImageDraw.ImageDraw, shown: Captioned, at: tuple[int, int]) -> None:
    """The picture as large as it fits into the cell's middle, its caption below the cell."""
    picture = ImageOps.contain(shown.picture, (_CELL_WIDTH, _CELL_HEIGHT), Image.Resampling.LANCZOS)
    left = at[0] + (_CELL_WIDTH - picture.width) // 2
    top = at[1] + (_CELL_HEIGHT - picture.height) // 2
    sheet.paste(picture, (left, top))
    middle = at[0] + _CELL_WIDTH / 2
    pen.text((middle, at[1] + _CELL_HEIGHT + 10), shown.caption, _FAINT, _font(16), anchor="ma")


def _draw_arrow(pen: ImageDraw.ImageDraw, y: int) -> None:
    left, right = _ARROW_X + 18, _ARROW_X + _ARROW_WIDTH - 18
    pen.line((left, y, right - 8, y), _FAINT, 3)
    pen.polygon(((right, y), (right - 12, y - 8), (right - 12, y + 8)), _FAINT)


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels; a word that is longer stands alone and is cut short."""
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
    # Pillow's embedded font; without FreeType it would be a bitmap of one size.
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise OSError("This Pillow was built without FreeType, which the contact sheet's labels need.")
    return font
