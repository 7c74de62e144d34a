"""README's pictures of the web page, with the toy weights: a screenshot and the turntable that the page saves.

    python -m tests.benchmarks.screenshots [FOLDER]

With a folder, also a screenshot of each of its states.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, expect

from serve_app.config import TINY_FILE
from serve_app.tiny.world import render
from serve_app.tools.demo.modes import POSE, SCENES, encode_png
from tests.conftest import ROOT
from tests.service.conftest import Service, host_in
from tests.service.visit import Visit, chromium

RESULTS = ROOT / "tests" / "benchmarks" / "results"
SCREENSHOT, TURNTABLE = RESULTS / "playground.webp", RESULTS / "playground-orbit.webp"
VIEWPORT: ViewportSize = {"width": 1280, "height": 900}
STEPS = "100"  # so that progress can be seen


def main(folder: Path | None) -> None:
    with toy_service() as (browser, service):
        walk(browser.new_page(viewport=VIEWPORT), service, folder)


@contextmanager
def toy_service() -> Iterator[tuple[Browser, Service]]:
    """A browser, and a service with the toy weights that needs no key, until the end of the block."""
    with TemporaryDirectory() as place, chromium() as browser:
        store = {"kind": "sqlite", "path": f"{place}/jobs.sqlite3"}
        host = host_in(Path(place), shipped=TINY_FILE, jobs={"store": store})
        try:
            host.start()
            yield browser, host.service
        finally:
            host.stop()


def walk(page: Page, service: Service, folder: Path | None) -> None:
    """Go through the page's states, and take README's pictures on the way."""
    visit = Visit(page, service)

    def shoot(name: str) -> None:
        page.wait_for_timeout(300)  # for pictures to be decoded
        if folder is not None:
            page.screenshot(path=folder / f"{name}.png")

    page.goto(f"{service.url}/")
    expect(page.locator("html")).to_have_attribute("data-ready", "true")
    shoot("1-empty")
    visit.drop(encode_png(Image.fromarray(render(SCENES[0], POSE))))
    shoot("2-picture")
    page.locator("#sphere").evaluate("node => node.scrollIntoView({ block: 'center' })")
    grip = page.locator(".handle.side").bounding_box()
    area = page.locator("#sphere").bounding_box()
    assert grip is not None
    assert area is not None
    page.mouse.move(grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2)
    page.mouse.down()
    page.mouse.move(area["x"] + 0.14 * area["width"], area["y"] + 0.41 * area["height"], steps=12)
    shoot("3-dragging")
    page.mouse.up()
    page.select_option("#elevation", "60")
    page.fill("#prompt", "make it night")
    visit.set(num_inference_steps=STEPS)
    page.click("#start")
    expect(page.locator("#view .state")).to_contain_text("Step", timeout=30_000)
    shoot("4-progress")
    visit.done()
    shoot("5-result")
    visit.set(num_inference_steps="4")
    page.fill("#prompt", "")
    page.select_option("#azimuth", "0")
    page.select_option("#elevation", "30")
    visit.choose_views("8")
    page.locator("#more").evaluate("more => more.open = false")
    page.click("#start")
    visit.done("8 pictures")
    page.evaluate("scrollTo(0, 0)")
    shoot("6-orbit")
    png = page.screenshot()
    save_screenshot(png)
    TURNTABLE.write_bytes(visit.downloaded("#download-orbit"))
    visit.set(seed="abc")
    page.click("#start")
    expect(page.locator("#error-seed")).not_to_be_empty()
    shoot("7-error")
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="dark")
    page.locator("#stage").scroll_into_view_if_needed()
    page.evaluate("scrollTo(0, 0)")
    shoot("8-narrow-dark")
    if folder is not None:
        page.screenshot(path=folder / "8-narrow-dark-all.png", full_page=True)


def save_screenshot(png: bytes) -> None:
    with TemporaryDirectory() as place:
        file = Path(place) / "page.png"
        file.write_bytes(png)
        Image.open(file).convert("RGB").save(SCREENSHOT, quality=90, method=6)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
