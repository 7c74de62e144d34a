"""The web page in Chromium: a first visit with the toy weights, from an API key to an orbit."""

import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from PIL import Image
from playwright.sync_api import Browser, Route, expect

from serve_app.edits.camera import CameraPose
from serve_app.tiny.world import render
from serve_app.tools.demo.modes import POSE, SCENES, encode_png
from tests.forwarder import forwarding
from tests.service.conftest import TOY_KEY, Service
from tests.service.node import installed_clients, run
from tests.service.visit import DONE_MS, Visit, centre, chromium, failed_load, visiting

LEFT_FROM_ABOVE = CameraPose(270, 60, 1.0)


@pytest.fixture(scope="module")
def picture() -> bytes:
    """A toy scene that the weights were not trained on."""
    return encode_png(Image.fromarray(render(SCENES[0], POSE)))


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core's script, installed with the JavaScript clients' packages."""
    return (installed_clients() / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, toy: Service) -> Iterator[Visit]:
    with visiting(browser, toy) as visit:
        yield visit


def test_a_first_visit(visit: Visit, picture: bytes, axe: str) -> None:
    page = visit.page
    visit.open()
    assert visit.violations(axe) == []
    expect(page.locator("#words")).to_contain_text("Nothing yet")
    visit.drop(picture)
    expect(page.locator("#examples")).to_contain_text("not photographs")
    expect(page.locator(".example").first).to_be_visible()
    visit.drag("side", 0.14, 0.59)
    visit.drag("height", 0.37, 0.83)
    expect(page.locator("#words")).to_have_text(LEFT_FROM_ABOVE.tokens)
    expect(page.locator("#azimuth")).to_have_value("270")
    page.fill("#prompt", "make it night")
    expect(page.locator("#words")).to_have_text(f"{LEFT_FROM_ABOVE.tokens} make it night")
    page.click("#start")
    visit.done()
    expect(page.locator("#view .caption q")).to_have_text(f"{LEFT_FROM_ABOVE.tokens} make it night")
    page.locator(".compare input").fill("20")
    assert page.locator(".compare").evaluate("node => node.style.getPropertyValue('--at')") == "20%"
    assert visit.violations(axe) == []

    drawn = visit.downloaded("#download")
    assert Image.open(BytesIO(drawn)).size == (64, 64)
    page.reload()
    visit.done()
    expect(page.locator("#runs li")).to_have_count(1)
    assert visit.downloaded("#download") == drawn
    page.click("#same-settings")
    expect(page.locator("#words")).to_have_text(f"{LEFT_FROM_ABOVE.tokens} make it night")
    page.click("#clear")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-ready", "true")
    expect(page.locator("#runs li")).to_have_count(0)


def test_an_orbit_fills_and_becomes_a_turntable(visit: Visit, picture: bytes, axe: str) -> None:
    page = visit.page
    visit.open()
    visit.drop(picture)
    page.select_option("#elevation", "30")
    visit.choose_views("8")
    expect(page.locator("#words")).to_contain_text("and 7 other views")
    expect(page.locator("#views-hint")).to_have_text("8 sides, at the height and distance above.")
    page.click("#start")
    expect(page.locator(".cell")).to_have_count(8)
    visit.done("8 pictures")
    table = page.get_by_role("slider", name="Turntable")
    expect(table).to_have_attribute("aria-valuetext", CameraPose(0, 30, 1.0).tokens)
    assert visit.violations(axe) == []
    table.press("ArrowRight")
    expect(table).to_have_attribute("aria-valuetext", CameraPose(45, 30, 1.0).tokens)
    x, y = centre(table)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 80, y, steps=8)
    page.mouse.up()
    expect(table).to_have_attribute("aria-valuetext", CameraPose(315, 30, 1.0).tokens)
    with zipfile.ZipFile(BytesIO(visit.downloaded("#download-all"))) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 8
    animation = Image.open(BytesIO(visit.downloaded("#download-orbit")))
    assert (animation.format, getattr(animation, "n_frames", 1)) == ("WEBP", 8)


MARKS = {
    ("runpod", "curl"): "runsync",
    ("runpod", "python"): "import runpod",
    ("runpod", "javascript"): "runpod-sdk",
    ("openai", "curl"): "images/edits",
    ("openai", "python"): "from openai",
    ("openai", "javascript"): 'from "openai"',
}
"""What tells the page's programs apart."""

RUNNERS = {
    "curl": ("edit.sh", ["sh"]),
    "python": ("edit.py", [sys.executable, "-W", "ignore"]),
    "javascript": ("edit.mjs", ["node"]),
}


@pytest.mark.parametrize("is_large", [False, True])
def test_copied_code_draws_the_same_pictures(visit: Visit, picture: bytes, is_large: bool, tmp_path: Path) -> None:
    """A large picture is read from its file, a small one is in the code."""
    page = visit.page
    visit.open()
    page.select_option("#elevation", "60")
    page.fill("#prompt", 'make it "night", $HOME')
    if is_large:
        noise = np.random.default_rng(7).integers(0, 256, (160, 160, 3), dtype=np.uint8)
        picture = encode_png(Image.fromarray(noise))
        visit.choose_views("4")
        visit.set(width="64", height="64")
    else:
        page.get_by_label("cyanotype", exact=True).check()
        page.get_by_label("Weight of cyanotype").fill("0.75")
    (tmp_path / "one's own.png").write_bytes(picture)
    visit.drop(picture, "one's own.png")
    page.click("#start")
    visit.done("4 pictures" if is_large else "Done")
    if not is_large:
        expect(page.locator("#view .caption")).to_contain_text(re.compile(r"seed 42, cyanotype . 0\.75$"))
    if is_large:
        with zipfile.ZipFile(BytesIO(visit.downloaded("#download-all"))) as archive:
            drawn = [archive.read(name) for name in sorted(archive.namelist())]
    else:
        drawn = [visit.downloaded("#download")]
    (tmp_path / "node_modules").symlink_to(installed_clients() / "node_modules")
    page.locator("#request summary").click()
    for dialect, language in product(("runpod", "openai"), RUNNERS):
        page.select_option("#dialect", dialect)
        page.select_option("#language", language)
        expect(page.locator("#code")).to_contain_text(MARKS[dialect, language])
        page.click("#copy")
        file, runner = RUNNERS[language]
        (tmp_path / file).write_text(page.evaluate("navigator.clipboard.readText()"))
        run([*runner, file], tmp_path)
        outputs = [tmp_path / f"output-{number}.png" for number in range(1, len(drawn) + 1)]
        assert [output.read_bytes() for output in outputs] == drawn, (dialect, language)
        for output in outputs:
            output.unlink()


def test_an_edit_is_cancelled(visit: Visit, picture: bytes) -> None:
    page = visit.page
    visit.open()
    visit.drop(picture)
    visit.choose_views("8")
    visit.set(width="128", height="128")
    with page.expect_response("**/run") as accepted:
        page.click("#start")
    job = accepted.value.json()["id"]
    with page.expect_response("**/cancel/*") as cancelled:
        page.click("#cancel")
    assert cancelled.value.json() == {"id": job, "status": "CANCELLED"}
    expect(page.locator("#view .state")).to_contain_text("Cancelled")
    answer = requests.get(f"{visit.service.url}/status/{job}", headers=visit.service.headers, timeout=30)
    assert answer.json()["status"] == "CANCELLED"


def test_errors_stand_at_their_fields_in_the_apis_words(visit: Visit, picture: bytes, axe: str) -> None:
    page = visit.page
    visit.expected = ("400 (Bad Request)",)
    visit.open()
    page.click("#start")
    expect(page.locator("#error-image")).to_have_text("Add a picture first.")
    expect(page.locator("#runs li")).to_have_count(0)
    visit.drop(picture, "good.png")
    expect(page.locator("#error-image")).to_be_empty()
    page.click("#start")
    expect(page.locator("#error-prompt")).to_contain_text("input.prompt is empty")
    visit.choose_views("4")
    expect(page.locator("#error-prompt")).to_be_empty()
    visit.choose_views("one")
    visit.drop(b"no picture at all", "broken.png")
    page.fill("#prompt", "make it night")
    page.click("#start")
    expect(page.locator("#error-image")).to_contain_text("input.images[1]")
    expect(page.locator(".tile.wrong")).to_have_attribute("title", "broken.png")
    page.get_by_label("Remove picture 2").click()
    expect(page.locator("#error-image")).to_be_empty()
    visit.set(seed="abc")
    page.click("#start")
    expect(page.locator("#error-seed")).to_have_text("input.seed must be a whole number, got 'abc'.")
    expect(page.locator("#seed")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#seed")).to_be_focused()
    assert visit.violations(axe) == []
    visit.set(seed="7")
    expect(page.locator("#error-seed")).to_be_empty()
    page.get_by_label("Weight of cyanotype").fill("9")
    expect(page.get_by_label("cyanotype", exact=True)).to_be_checked()
    page.click("#start")
    expect(page.locator("#error-loras")).to_have_text("input.loras[0].weight must be between -2.0 and 2.0, got 9.0.")
    expect(page.get_by_label("Weight of cyanotype")).to_be_focused()
    assert visit.violations(axe) == []
    page.get_by_label("cyanotype", exact=True).uncheck()
    expect(page.locator("#error-loras")).to_be_empty()
    page.get_by_label("Weight of cyanotype").fill("9")

    def uncheck_and_send(route: Route) -> None:
        page.get_by_label("cyanotype", exact=True).uncheck()
        route.continue_()

    page.route("**/run", uncheck_and_send)
    page.click("#start")
    expect(page.locator("#error-loras")).to_contain_text("input.loras[0].weight")
    expect(page.locator("#runs li")).to_have_count(0)


def test_a_wrong_key_is_asked_for_again(visit: Visit) -> None:
    page = visit.page
    visit.expected = ("401 (Unauthorized)",)
    visit.open("wrong")
    expect(page.locator("#error-key")).to_contain_text("The API key is missing or wrong.")
    page.fill("#key", TOY_KEY)
    page.keyboard.press("Enter")
    expect(page.locator("html")).to_have_attribute("data-ready", "true")
    expect(page.locator("#model")).to_contain_text("lightning")
    page.reload()
    expect(page.locator("#model")).to_contain_text("lightning")
    expect(page.locator("#key-dialog")).to_be_hidden()


def test_a_late_refusal_of_an_old_key_does_not_ask_again(visit: Visit) -> None:
    page = visit.page
    visit.expected = ("401 (Unauthorized)",)
    held: list[Route] = []

    def hold_one(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer wrong" and not held:
            held.append(route)
        else:
            route.continue_()

    page.route("**/settings.json", hold_one)
    visit.open("wrong")
    expect(page.locator("#error-key")).to_contain_text("The API key is missing or wrong.")
    page.fill("#key", TOY_KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_contain_text("lightning")
    held[0].continue_()
    expect(page.locator("html")).to_have_attribute("data-ready", "true")
    expect(page.locator("#key-dialog")).to_be_hidden()


def test_with_the_keyboard_alone(visit: Visit) -> None:
    page = visit.page

    def tab_to(selector: str) -> None:
        for _ in range(60):
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
            page.keyboard.press("Tab")
        pytest.fail(f"{selector} is not reached")

    page.goto(f"{visit.service.url}/")
    expect(page.locator("#key")).to_be_focused()
    page.keyboard.type(f"{TOY_KEY}\n")
    expect(page.locator("html")).to_have_attribute("data-ready", "true")
    tab_to(".example")
    page.keyboard.press("Enter")
    expect(page.locator(".tile")).to_have_count(1)
    tab_to(".handle.side")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    tab_to(".handle.height")
    page.keyboard.press("End")
    expect(page.locator("#words")).to_have_text(LEFT_FROM_ABOVE.tokens)
    page.keyboard.press("Control+Enter")
    visit.done()
    tab_to("#download")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen(visit: Visit, picture: bytes, axe: str, scheme: str) -> None:
    visit.page.set_viewport_size({"width": 360, "height": 740})
    visit.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    visit.open()
    visit.drop(picture)
    visit.set()
    visit.page.locator("#request summary").click()
    expect(visit.page.locator("#code")).to_contain_text("curl")
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 360
    assert visit.violations(axe) == []


def test_the_reference_works_offline(visit: Visit, axe: str) -> None:
    page = visit.page
    visit.open()
    page.get_by_role("link", name="API reference").click()
    expect(page.locator(".route")).not_to_have_count(0)
    expect(page.get_by_role("heading", name="POST /runsync")).to_be_visible()
    expect(page.get_by_role("heading", name="POST /v1/images/edits")).to_be_visible()
    assert visit.violations(axe) == []
    page.fill("#filter", "purge")
    expect(page.locator(".route:visible")).to_have_count(1)
    home = page.get_by_role("link", name="Playground")
    expect(home).to_be_visible()

    def without_playground(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "has_playground": False})

    page.route("**/poses.json", without_playground)
    page.reload()
    expect(page.locator(".route")).not_to_have_count(0)
    expect(home).to_be_hidden()


def test_jobs_resume_when_the_service_returns(visit: Visit, picture: bytes) -> None:
    """The service is gone: connections break, and new ones are refused. Then Serve's proxy is there without an
    application, and then the application."""
    page, polls, accepted = visit.page, "**/stream/**", list[str]()
    page.on("response", lambda response: accepted.append(response.url) if response.url.endswith("/run") else None)
    with forwarding(urlsplit(visit.service.url).port or 80) as forwarder:
        visit.service = replace(visit.service, url=f"http://127.0.0.1:{forwarder.port}")
        visit.open()
        visit.drop(picture)
        visit.choose_views("8")
        visit.set(width="128", height="128")
        with page.expect_request(polls):
            page.click("#start")
        assert visit.console == []
        forwarder.close()
        expect(page.locator("#service")).to_contain_text("Connection lost. Trying again", timeout=DONE_MS)
        expect(page.locator("#cancel")).to_be_visible()
        page.route(polls, lambda route: route.fulfill(status=404, body="Path '/v2' not found."))
        expect(page.locator("#service")).to_contain_text("no JSON", timeout=DONE_MS)
        forwarder.open()
        page.unroute(polls)
        visit.done("8 pictures")
        expect(page.locator("#service")).to_be_empty()
        assert len(accepted) == 1
        assert visit.console != []
        assert [line for line in visit.console if not failed_load("404 (Not Found)").match(line)] == []
        visit.console.clear()
        page.reload()
        visit.done("8 pictures")
        with zipfile.ZipFile(BytesIO(visit.downloaded("#download-all"))) as archive:
            sizes = [Image.open(BytesIO(archive.read(name))).size for name in archive.namelist()]
        assert sizes == [(128, 128)] * 8
