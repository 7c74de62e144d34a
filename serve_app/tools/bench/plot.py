"""Step time over packed tokens as a picture."""

import re

from PIL import Image, ImageDraw, ImageFont

from serve_app.tools.bench.engine import Result

WIDTH, HEIGHT, MARGIN = 960, 600, 90
INK, GRID = "#333333", "#dddddd"
COLOURS = {"one by one": "#c04a3a", "packed": "#2f6db5"}
_SECTION = re.compile(r"step of (\d+) edits, (\d+) picture tokens")


def step_points(result: Result) -> dict[str, list[tuple[int, float]]]:
    """For each way of stepping: picture tokens and milliseconds."""
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in COLOURS}
    for row in result.rows:
        if found := _SECTION.fullmatch(row.section):
            points[row.name].append((int(found[2]), row.median_s * 1000))
    return points


def plot_step_cost(result: Result) -> Image.Image:
    """A line for packed steps and one for the same edits stepped one by one, from the origin."""
    points = step_points(result)
    most_tokens = max(tokens for line in points.values() for tokens, _ in line)
    most_ms = max(ms for line in points.values() for _, ms in line)
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=16)

    def place(tokens: float, ms: float) -> tuple[float, float]:
        x = MARGIN + tokens / most_tokens * (WIDTH - 2 * MARGIN)
        return x, HEIGHT - MARGIN - ms / most_ms * (HEIGHT - 2 * MARGIN)

    for part in range(5):
        tokens, ms = most_tokens * part / 4, most_ms * part / 4
        draw.line([place(0, ms), place(most_tokens, ms)], GRID)
        draw.text(place(0, ms), f"{ms:.0f} ", INK, font, anchor="rm")
        x, y = place(tokens, 0)
        draw.text((x, y + 12), f"{tokens:.0f}", INK, font, anchor="mt")
    for name, line in points.items():
        places = [place(*point) for point in line]
        draw.line(places, COLOURS[name], width=3)
        for x, y in places:
            draw.ellipse([x - 5, y - 5, x + 5, y + 5], COLOURS[name])
        draw.text((places[-1][0], places[-1][1] - 14), name, COLOURS[name], font, anchor="rb")
    draw.text((WIDTH / 2, HEIGHT - 36), "picture tokens in the step (1, 2, 4, 8, 16 edits)", INK, font, anchor="mm")
    draw.text((MARGIN, MARGIN / 2), "ms a step", INK, font, anchor="lm")
    return picture
