"""The examples of the users' API document, against the running service with only the host changed."""

import base64
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.pictures import from_base64, photograph, to_base64
from tests.service.conftest import Service

ASTRONAUT = to_base64(photograph("astronaut"), "JPEG")
COFFEE = to_base64(photograph("coffee"))
DOCUMENT = ROOT.parent / "shared" / "seeds" / "camera-edit-api.md"
CLOUD = "https://api.runpod.ai"


def test_single_edit_with_camera_and_rewriting(service: Service) -> None:
    prompt = "Change the time of day to sunset with warm orange lighting"
    envelope = service.run(
        image=ASTRONAUT,
        prompt=prompt,
        azimuth=45,
        elevation=30,
        rewrite_prompt=True,
        num_inference_steps=4,
        guidance_scale=1.2,
        seed=1337,
    )
    output = check(envelope, num_images=1)
    assert output["seed"] == 1337
    assert output["final_prompts"] == [f"<sks> front-right quarter view elevated shot medium shot {prompt}"]
    # Random weights write no JSON, and the response reports it.
    reason = "the rewriter's answer held no JSON object"
    assert output["rewritten_log"] == [{"prompt": prompt, "rewritten": None, "reason": reason}]
    assert from_base64(output["images"][0]).size == (256, 256)


def test_batch_of_two(service: Service) -> None:
    prompts = ["Add a red hat to the person", "Change the background to a snowy mountain"]
    output = check(service.run(images=[ASTRONAUT, COFFEE], prompt=prompts, seed=42), num_images=2)
    assert output["final_prompts"] == prompts
    assert [from_base64(image).size for image in output["images"]] == [(256, 256), (320, 224)]
    alone = service.run(image=COFFEE, prompt=prompts[1])
    assert from_base64(alone["output"]["images"][0]).size == (320, 224)


def test_style_reference(service: Service) -> None:
    prompt = "Apply the artistic style and color palette of image 2 to image 1"
    envelope = service.run(images=[ASTRONAUT, COFFEE], prompt=prompt, rewrite_prompt=True, guidance_scale=1.2)
    output = check(envelope, num_images=1)
    assert output["final_prompts"] == [prompt]


def test_camera(service: Service) -> None:
    envelope = service.run(
        image=ASTRONAUT,
        prompt="A futuristic city street",
        azimuth=270,
        elevation=60,
        distance=1.8,
        num_inference_steps=6,
    )
    output = check(envelope, num_images=1)
    assert output["final_prompts"] == ["<sks> left side view high-angle shot wide shot A futuristic city street"]


def test_the_same_seed_gives_the_same_file(service: Service) -> None:
    fields = {"image": ASTRONAUT, "prompt": "Make it rainy", "seed": 5}
    first, second = (service.run(**fields)["output"]["images"] for _ in range(2))
    assert first == second
    assert service.run(**{**fields, "seed": 6})["output"]["images"] != first


def check(envelope: dict[str, Any], num_images: int) -> dict[str, Any]:
    assert envelope.keys() == {"id", "status", "delayTime", "executionTime", "workerId", "output"}
    assert envelope["status"] == "COMPLETED"
    assert envelope["id"].startswith("sync-")
    assert envelope["executionTime"] > 0
    assert envelope["workerId"]
    output: dict[str, Any] = envelope["output"]
    assert output.keys() == {"images", "seed", "final_prompts", "rewritten_log"}
    assert [from_base64(image).format for image in output["images"]] == ["PNG"] * num_images
    return output


# The document's own programs, with only the host changed.

needs_document = pytest.mark.skipif(not DOCUMENT.exists(), reason="the users' API document is not beside this clone")


def program(language: str, number: int) -> str:
    """The document's programs in this language, counted from 0, with the host changed."""
    found = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    assert CLOUD in found[number]
    return str(found[number])


@needs_document
def test_the_documents_curl_program(service: Service, tmp_path: Path) -> None:
    photograph("astronaut").save(tmp_path / "input_scene.png")
    # GNU's base64 breaks its lines, so the document's JSON contains bare line breaks; it must work nevertheless.
    run(["bash", "-euo", "pipefail", "-c", program("bash", 0).replace(CLOUD, service.url)], tmp_path)
    assert from_file(tmp_path / "output_result.png") == ("PNG", (256, 256))


@needs_document
def test_the_documents_first_python_program(service: Service, tmp_path: Path) -> None:
    photograph("coffee").save(tmp_path / "room.jpg")
    printed = run([sys.executable, "-c", program("python", 0).replace(CLOUD, service.url)], tmp_path)
    assert "Image processed successfully." in printed
    assert from_file(tmp_path / "output.png") == ("PNG", (320, 224))


@needs_document
def test_the_documents_second_python_program(service: Service, tmp_path: Path) -> None:
    for name, file in (("astronaut", "img1.jpg"), ("coffee", "img2.jpg")):
        photograph(name).save(tmp_path / file)
    source = program("python", 1).replace(CLOUD, service.url)
    printed = run([sys.executable, "-c", f"{source}\nprint('got', len(results))"], tmp_path)
    assert "got 2" in printed


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def from_file(path: Path) -> tuple[str | None, tuple[int, int]]:
    picture = from_base64(base64.b64encode(path.read_bytes()).decode())
    return picture.format, picture.size
