"""The recipes of configs/README.md: what they say to enter, in each client's own code or, for Open WebUI, as its code
sends it."""

import asyncio
import base64
import json
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests
import yaml

from tests.conftest import ROOT
from tests.pages import ADDRESS, CONFIGS_README, blocks, inline
from tests.pictures import from_base64, photograph
from tests.service.conftest import Service
from tests.service.node import installed_clients, needs_node, run

N8N = "@n8n/n8n-nodes-langchain@2.41.1"
N8N_INTEGRITY = "sha512-ANQYlKE2DZZKzUndfOIxK8f/NbsANeZmGsOG0DsTwtX8KF9noEdMyiS2KXGGysvjGqR5nYZdz2pSXPQe0tAYvQ=="
WORDS = "<sks> right side view eye-level shot medium shot"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "photo.png"
    photograph("astronaut", 96, 64).save(file)
    return file


def entered(start: str) -> str:
    """The inline code of the recipes that begins so."""
    (text,) = {text for text in inline(CONFIGS_README) if text.startswith(start)}
    return text


def edit(service: Service, picture: Path, **fields: Any) -> dict[str, Any]:
    with picture.open("rb") as file:
        form = {"size": "64x64", "num_inference_steps": 1, "seed": 7, **fields}
        response = requests.post(f"{service.url}/v1/images/edits", data=form, files={"image": file}, timeout=120)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_the_words_of_a_pose_do_what_its_fields_do(service: Service, picture: Path) -> None:
    assert entered("<sks> right") == f"{WORDS} make it night"
    by_words = edit(service, picture, prompt=f"{WORDS} make it night")
    by_fields = edit(service, picture, prompt="make it night", azimuth=90)
    assert by_words["data"][0]["b64_json"] == by_fields["data"][0]["b64_json"]


@pytest.mark.parametrize("several", [False, True])
def test_open_webui(service: Service, picture: Path, several: bool) -> None:
    """As `image_edits` in open_webui/routers/images.py of 0.12.4 sends it: a file as `image`, a list as `image[]`."""
    settings = dict(re.findall(r"`([A-Z_]+)=([^`]*)`", CONFIGS_README.read_text()))
    assert settings["IMAGE_EDIT_ENGINE"] == "openai"
    form = aiohttp.FormData()
    form.add_field("model", settings["IMAGE_EDIT_MODEL"])
    form.add_field("prompt", "make it sunset")
    form.add_field("size", "64x64")
    form.add_field("response_format", "b64_json")
    for name in ["image[]", "image[]"] if several else ["image"]:
        form.add_field(name, picture.open("rb"), filename="0b5e.png", content_type="image/png")
    url = settings["IMAGES_EDIT_OPENAI_API_BASE_URL"].replace(ADDRESS, service.url)

    async def send() -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {settings['IMAGES_EDIT_OPENAI_API_KEY']}"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(url=f"{url}/images/edits", headers=headers, data=form) as response,
        ):
            response.raise_for_status()
            answer: dict[str, Any] = await response.json(content_type=None)
        return answer

    (image,) = asyncio.run(send())["data"]
    assert image.get("url") is None  # it would be fetched
    assert from_base64(image["b64_json"]).size == (64, 64)


def test_litellms_proxy(service: Service, picture: Path, tmp_path: Path) -> None:
    """Its router, which the proxy calls with the fields of a form."""
    (config,) = [text for text in blocks(CONFIGS_README, "yaml") if "model_list" in text]
    file = tmp_path / "litellm.yaml"
    file.write_text(config.replace(ADDRESS, service.url))
    program = ROOT / "tests" / "clients" / "route_with_litellm.py"
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # its table of prices would be downloaded
    data = json.loads(run([sys.executable, program, file, picture], tmp_path, **local))
    assert [each["b64_json"] for each in data] == [
        edit(service, picture, prompt="make it night", azimuth=90)["data"][0]["b64_json"]
    ]


@needs_node
def test_n8n(service: Service, picture: Path, tmp_path: Path) -> None:
    names = yaml.safe_load(entered("served_model_names: "))["served_model_names"]
    listed = requests.get(f"{service.url}/v1/models", timeout=30).json()["data"]
    assert [each["id"] for each in listed][: len(names)] == names  # adapters follow
    (packed,) = json.loads(run(["npm", "pack", N8N, "--json"], tmp_path))
    assert packed["integrity"] == N8N_INTEGRITY
    with tarfile.open(tmp_path / packed["filename"]) as archive:
        archive.extractall(tmp_path, filter="data")
    program = installed_clients() / "edit_with_n8n.cjs"
    output = run(["node", program, tmp_path / "package" / "dist", service.url, "any", names[-1], picture], tmp_path)
    offered, image = output.splitlines()
    assert offered == names[-1]
    assert from_base64(image).size == (256, 256)


@needs_node
def test_the_ai_sdk(service: Service, tmp_path: Path) -> None:
    photograph("coffee", 96, 64).save(tmp_path / "room.jpg")
    (program,) = blocks(CONFIGS_README, "js")
    (tmp_path / "node_modules").symlink_to(installed_clients() / "node_modules")
    (tmp_path / "orbit.mjs").write_text(program.replace(ADDRESS, service.url))
    run(["node", "orbit.mjs"], tmp_path)
    views = [(tmp_path / f"view-{number}.png").read_bytes() for number in range(1, 5)]
    assert len(set(views)) == 4
    assert {from_base64(base64.b64encode(view).decode()).format for view in views} == {"PNG"}
