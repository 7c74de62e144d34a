"""How heavy the web page is, how soon it shows, and how smoothly its sphere turns, by Chromium's own measurements.

    python -m tests.benchmarks.page_speed [FILE]

Prints the figures as JSON, and writes them to FILE. The machine's load average is among them: only an idle machine's
figures say something about the page.
"""

import json
import math
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from serve_app.tiny.world import render
from serve_app.tools.demo.modes import POSE, SCENES, encode_png
from tests.benchmarks.screenshots import VIEWPORT, toy_service
from tests.service.conftest import Service
from tests.service.visit import Visit, centre

NUM_VISITS = 40
NUM_MOVES = 300
CATEGORIES = ["blink.user_timing", "devtools.timeline", "disabled-by-default-devtools.timeline.frame"]
_LOADED = """() => {
    const [page] = performance.getEntriesByType("navigation");
    const [paint] = performance.getEntriesByName("first-contentful-paint");
    const files = [page, ...performance.getEntriesByType("resource")];
    return {
        first_contentful_paint_ms: paint.startTime,
        load_ms: page.loadEventEnd,
        files: files.length,
        bytes: files.reduce((sum, file) => sum + file.encodedBodySize, 0),
    };
}"""


def main(file: Path | None) -> None:
    with toy_service() as (browser, service):
        text = json.dumps(figures(browser, service), indent=2)
    print(text)
    if file is not None:
        file.write_text(f"{text}\n")


def figures(browser: Browser, service: Service) -> dict[str, Any]:
    load = [round(each, 2) for each in os.getloadavg()]
    first_visit(browser, service)  # the service's own first use of its files
    visits = [first_visit(browser, service) for _ in range(NUM_VISITS)]
    medians = {name: round(statistics.median(visit[name] for visit in visits), 1) for name in visits[0]}
    return {
        "browser": f"Chromium {browser.version}, software rendering",
        "load_average_before": load,
        "visits": NUM_VISITS,
        "first_visit_medians": medians,
        "p90_first_contentful_paint_ms": round(p90([each["first_contentful_paint_ms"] for each in visits]), 1),
        "dragging_frames_per_s": round(frames_per_s(browser, service), 1),
    }


def p90(values: list[float]) -> float:
    return statistics.quantiles(values, n=10, method="inclusive")[-1]


def first_visit(browser: Browser, service: Service) -> dict[str, float]:
    """A visit with an empty cache, until the page is ready."""
    page = browser.new_page(viewport=VIEWPORT)
    open_page(page, service)
    measured: dict[str, float] = page.evaluate(_LOADED)
    page.close()
    return measured


def open_page(page: Page, service: Service) -> None:
    page.goto(f"{service.url}/")
    expect(page.locator("html")).to_have_attribute("data-ready", "true")


def frames_per_s(browser: Browser, service: Service) -> float:
    """Frames that the compositor drew while the camera was dragged around the picture twice."""
    page = browser.new_page(viewport=VIEWPORT)
    open_page(page, service)
    Visit(page, service).drop(encode_png(Image.fromarray(render(SCENES[0], POSE))))
    x, y = centre(page.locator("#sphere"))
    page.mouse.move(*centre(page.locator(".handle.side :not(.focus)")))
    page.mouse.down()
    browser.start_tracing(page=page, categories=CATEGORIES)
    page.evaluate("performance.mark('drag-begins')")
    for number in range(NUM_MOVES):
        turn = 4 * math.pi * number / NUM_MOVES
        page.mouse.move(x + 150 * math.sin(turn), y + 75 * math.cos(turn))
    page.evaluate("performance.mark('drag-ends')")
    events = json.loads(browser.stop_tracing())["traceEvents"]
    page.mouse.up()
    page.close()
    begin, end = (next(each["ts"] for each in events if each["name"] == name) for name in ("drag-begins", "drag-ends"))
    drawn = [each["ts"] for each in events if each["name"] == "DrawFrame" and begin <= each["ts"] <= end]
    return len(drawn) / float(end - begin) * 1e6


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
