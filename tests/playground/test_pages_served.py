"""The files of the web pages as the ingress serves them, and what they know of the service."""

import base64
import dataclasses
import hashlib
import re
from itertools import product

import pytest
from fastapi.testclient import TestClient

from serve_app.config import AppSettings
from serve_app.edits.camera import AZIMUTH_WORDS, ELEVATION_WORDS, CameraPose, camera_prompt
from serve_app.ingress.app import build_app
from serve_app.ingress.playground import FOLDER
from serve_app.tiny.world import DISTANCES
from tests.ingress.openai_harness import harness

MAX_BYTES = 150_000
KEY = {"authorization": "Bearer secret"}


def client_of(settings: AppSettings, *, has_playground: bool = True, keys: tuple[str, ...] = ()) -> TestClient:
    backend = dataclasses.replace(harness(settings, api_keys=keys).backend, has_playground=has_playground)
    return TestClient(build_app(backend), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(tiny_settings: AppSettings) -> TestClient:
    return client_of(tiny_settings)


@pytest.fixture(scope="module")
def guarded(tiny_settings: AppSettings) -> TestClient:
    return client_of(tiny_settings, keys=("secret",))


def paths() -> list[str]:
    return ["/", "/docs", "/redoc", *(f"/playground/{file.name}" for file in FOLDER.iterdir())]


@pytest.mark.parametrize("path", [*paths(), "/playground/poses.json", "/playground/settings.json"])
def test_every_file_has_a_strict_policy(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    rules = dict(rule.strip().split(" ", 1) for rule in response.headers["content-security-policy"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["connect-src"] == "'self'"
    is_page = response.headers["content-type"].startswith("text/html")
    styles = re.findall(r"<style>(.*?)</style>", response.text, re.DOTALL) if is_page else []
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in styles}
    assert set(rules.pop("style-src").split()) == (hashes if is_page else {"'self'"})
    sources = {source for each in rules.values() for source in each.split()}
    assert sources <= {"'none'", "'self'", "blob:", "data:"}
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc"])
def test_a_page_brings_its_stylesheets(client: TestClient, path: str) -> None:
    page = client.get(path).text
    assert (FOLDER / "style.css").read_text() in page
    assert 'rel="stylesheet"' not in page


@pytest.mark.parametrize("path", paths())
def test_an_unchanged_file_is_not_sent_again(client: TestClient, path: str) -> None:
    tag = client.get(path).headers["etag"]
    for known in (tag, f'W/{tag}, "other"'):
        again = client.get(path, headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert "content-security-policy" in again.headers
    assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200


def test_all_files_together_are_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= MAX_BYTES


def test_the_pages_name_no_other_host_and_run_nothing_inline() -> None:
    for file in FOLDER.iterdir():
        if file.suffix in (".html", ".css", ".js"):
            hosts = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", file.read_text()))
            assert hosts <= {"http://www.w3.org"}, file.name  # the name of SVG, which is not loaded
        if file.suffix == ".html":
            text = file.read_text()
            assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", text), file.name


def test_the_page_loads_only_files_that_exist() -> None:
    named = {
        name
        for file in FOLDER.iterdir()
        if file.suffix in (".html", ".js")
        for name in re.findall(r'(?:"playground/|from "\./)([\w.-]+)"', file.read_text())
    }
    assert named - {"poses.json", "settings.json"} <= {file.name for file in FOLDER.iterdir()}
    assert "camera.js" in named


def test_the_words_of_all_96_poses_are_those_of_the_code(client: TestClient) -> None:
    listed = client.get("/playground/poses.json").json()
    assert (listed["needs_key"], listed["has_playground"]) == (False, True)
    poses = [CameraPose(*each) for each in product(AZIMUTH_WORDS, ELEVATION_WORDS, DISTANCES)]
    assert len(poses) == 96
    assert listed["poses"] == [
        {
            "azimuth": pose.azimuth,
            "elevation": pose.elevation,
            "distance": pose.distance,
            "words": camera_prompt(pose, ""),
        }
        for pose in poses
    ]


def test_the_settings_are_the_services(client: TestClient, tiny_settings: AppSettings) -> None:
    settings = client.get("/playground/settings.json").json()
    assert settings["limits"]["max_edits_per_request"] == tiny_settings.limits.max_edits_per_request
    adapters = {each["name"]: each for each in settings["adapters"]}
    assert {name: each["apply"] for name, each in adapters.items()} == {
        each.name: each.apply for each in tiny_settings.editor.loras
    }
    bounds = ("weight", "min_weight", "max_weight")
    assert [adapters["cyanotype"][name] for name in bounds] == [1, -2, 2]
    assert settings["rewriter"] is settings["has_tiny_weights"] is True


def test_the_settings_have_the_adapters_of_the_moment(tiny_settings: AppSettings) -> None:
    app = harness(tiny_settings)
    before = app.client.get("/playground/settings.json")
    (style,) = (lora for lora in tiny_settings.editor.loras if lora.name == "cyanotype")
    app.backend.reconfigured.loras = (style.model_copy(update={"name": "new"}),)
    after = app.client.get("/playground/settings.json")
    assert {each["name"] for each in after.json()["adapters"]} == {"lightning", "angles", "new"}
    assert after.headers["etag"] != before.headers["etag"]


def test_the_pages_need_no_key_but_the_settings_and_the_api_do(guarded: TestClient) -> None:
    for path in (*paths(), "/playground/poses.json"):
        assert guarded.get(path).status_code == 200, path
    assert guarded.get("/playground/poses.json").json()["needs_key"] is True
    for path in ("/playground/settings.json", "/openapi.json", "/health", "/playground", "/nope", "/docs/"):
        assert guarded.get(path, follow_redirects=False).status_code == 401, path
        assert guarded.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401, path
    assert guarded.get("/playground/settings.json", headers=KEY).status_code == 200


def test_without_the_playground_there_is_no_page_and_every_path_needs_a_key(tiny_settings: AppSettings) -> None:
    guarded = client_of(tiny_settings, has_playground=False, keys=("secret",))
    for path in (*paths(), "/playground/poses.json"):
        assert guarded.get(path).status_code == 401, path
    assert guarded.get("/", headers=KEY).status_code == 404
    assert guarded.get("/docs", headers=KEY).status_code == 200
    assert guarded.get("/playground/poses.json", headers=KEY).json()["has_playground"] is False


def test_an_unknown_file_is_a_404_in_the_services_words(client: TestClient) -> None:
    for name in ("nope.js", "..%2Fconfig.py", "%2e%2e"):
        response = client.get(f"/playground/{name}")
        assert response.status_code == 404, name
        assert response.json().keys() == {"error"}


def test_the_playground_is_only_read(client: TestClient) -> None:
    assert client.post("/").status_code == 405
    assert client.post("/playground/main.js").status_code == 405
