"""The web page in Chromium, as a visitor uses it."""

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

from tests.service.conftest import TOY_KEY, Service

CHROMIUM = "/usr/bin/chromium"
DONE_MS = 60_000


def failed_load(status: str) -> re.Pattern[str]:
    """What Chromium itself logs of a request that fails or has this status, such as "404 (Not Found)". No page can
    prevent it."""
    failure = rf"net::ERR_(CONNECTION_\w+|EMPTY_RESPONSE)|.* {re.escape(status)}"
    return re.compile(rf"Failed to load resource: ({failure})")


_DROP = """([base64, name]) => {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([bytes], name, { type: "image/png" }));
    const event = (type) => new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true });
    for (const type of ["dragover", "drop"]) document.getElementById("drop").dispatchEvent(event(type));
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A visitor's page, and what its console said.

    Attributes:
        expected: what Chromium itself logs about responses that the test provokes, as a status or an error's name.
    """

    page: Page
    service: Service
    console: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    expected: tuple[str, ...] = ()

    def open(self, key: str | None = TOY_KEY) -> None:
        """Open the page and, unless it is None, enter a key; with a right one, until the page is ready."""
        self.page.goto(f"{self.service.url}/")
        if key is not None:
            self.page.fill("#key", key)
            self.page.click("#key-save")
        if key in (None, TOY_KEY):
            expect(self.page.locator("html")).to_have_attribute("data-ready", "true")

    def drop(self, content: bytes, name: str = "own.png") -> None:
        self.page.evaluate(_DROP, [base64.b64encode(content).decode(), name])
        expect(self.page.locator(".tile").last).to_have_attribute("title", name)

    def drag(self, handle: str, across: float, up: float) -> None:
        """Drag a handle of the sphere to a place, in parts of the drawing's width and height."""
        sphere = self.page.locator("#sphere")
        sphere.evaluate("node => node.scrollIntoView({ block: 'center' })")
        area, grip = sphere.bounding_box(), centre(self.page.locator(f".handle.{handle} :not(.focus)"))
        assert area is not None
        self.page.mouse.move(*grip)
        self.page.mouse.down()
        self.page.mouse.move(area["x"] + across * area["width"], area["y"] + (1 - up) * area["height"], steps=12)
        self.page.mouse.up()

    def choose_views(self, value: str) -> None:
        self.page.check(f"input[name=views][value='{value}']")

    def set(self, **fields: str) -> None:
        self.page.locator("#more").evaluate("more => more.open = true")
        for name, value in fields.items():
            self.page.fill(f"#{name}", value)

    def done(self, text: str = "Done") -> None:
        expect(self.page.locator("#view .state")).to_have_text(text, timeout=DONE_MS)

    def downloaded(self, button: str) -> bytes:
        with self.page.expect_download() as download:
            self.page.click(button)
        return Path(download.value.path()).read_bytes()

    def violations(self, axe: str) -> list[str]:
        """What axe-core finds; it runs outside of the page's policy."""
        self.page.evaluate(axe)
        found = self.page.evaluate("axe.run()")
        return [f"{each['id']}: {node['html']}" for each in found["violations"] for node in each["nodes"]]


def centre(locator: Locator) -> tuple[float, float]:
    box = locator.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@contextmanager
def visiting(browser: Browser, service: Service) -> Iterator[Visit]:
    """A new visitor. At the end the console is empty, and no request has left the host."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    visit = Visit(context.new_page(), service)

    def hear(message: ConsoleMessage) -> None:
        visit.console.append(message.text)

    visit.page.on("console", hear)
    visit.page.on("pageerror", lambda error: visit.console.append(str(error)))
    visit.page.on("request", lambda request: visit.hosts.add(urlsplit(request.url).netloc))
    try:
        yield visit
    finally:
        context.close()
    surprises = [text for text in visit.console if not any(each in text for each in visit.expected)]
    assert surprises == []
    assert visit.hosts - {""} == {urlsplit(visit.service.url).netloc}  # blob: and data: have none
