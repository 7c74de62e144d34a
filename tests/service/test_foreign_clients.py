"""Clients that are not made for this service, driven as their users would: curl with HTTP/2, Java's HttpClient, and
LiteLLM."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.pictures import from_base64, photograph, to_base64
from tests.service.conftest import Service

QUICK = {"prompt": "make it sunset", "width": 64, "height": 64, "num_inference_steps": 1}


def needs(tool: str) -> pytest.MarkDecorator:
    missing = shutil.which(tool) is None and "CI" not in os.environ
    return pytest.mark.skipif(missing, reason=f"{tool} is not installed")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "photo.png"
    photograph("astronaut", 96, 64).save(file)
    return file


def curl(*arguments: str | Path) -> dict[str, object]:
    done = subprocess.run(["curl", "-sS", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answered: dict[str, object] = json.loads(done.stdout)
    return answered


@needs("curl")
def test_curl_that_offers_http_2_sends_json(service: Service, tmp_path: Path) -> None:
    payload = tmp_path / "payload.json"
    payload.write_text(json.dumps({"input": {"image": to_base64(photograph("astronaut", 96, 64)), **QUICK}}))
    url = f"{service.url}/v2/any/runsync"
    assert curl("--http2", "-d", f"@{payload}", "-H", "content-type: application/json", url)["status"] == "COMPLETED"


@needs("curl")
def test_curl_that_offers_http_2_sends_a_form(service: Service, picture: Path) -> None:
    form = ("-F", f"image=@{picture}", "-F", "prompt=make it sunset", "-F", "size=64x64", "-F", "num_inference_steps=1")
    assert curl("--http2", *form, f"{service.url}/v1/images/edits")["size"] == "64x64"


@needs("javac")
def test_javas_http_client_sends_json_and_a_form(service: Service, picture: Path) -> None:
    program = ROOT / "tests" / "clients" / "Edit.java"
    done = subprocess.run(["java", program, service.url, picture], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    first, envelope, second, images = done.stdout.splitlines()
    assert first == second == "200 HTTP_1_1"
    assert from_base64(json.loads(envelope)["output"]["images"][0]).size == (64, 64)
    assert from_base64(json.loads(images)["data"][0]["b64_json"]).size == (64, 64)


def test_litellm_edits_and_reads_a_refusal(service: Service, picture: Path) -> None:
    program = ROOT / "tests" / "clients" / "edit_with_litellm.py"
    local = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # its table of prices would be downloaded
    command: list[str | Path] = [sys.executable, program, service.url, "any-key", picture]
    done = subprocess.run(command, env=local, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    data, refusal = done.stdout.strip().splitlines()
    (image,) = json.loads(data)
    assert from_base64(image["b64_json"]).size == (64, 64)
    assert refusal.startswith("BadRequestError")
    assert "background" in refusal
