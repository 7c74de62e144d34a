"""Bad input over real HTTP: a 400 that names the field and the fix and makes no job, and the next request works.

The full list of messages is tested in tests/ingress; these tests show that bad input neither reaches
nor breaks what is behind the parser.
"""

import struct
import zlib
from base64 import b64encode
from typing import Any

import pytest
import requests
from PIL import Image

from tests.pictures import from_base64, photograph, to_base64
from tests.service.conftest import Service

GOOD: dict[str, Any] = {"image": to_base64(photograph("astronaut", 128, 128)), "prompt": "x", "num_inference_steps": 1}


def bomb() -> str:
    """A PNG that claims 20,000 x 20,000 pixels in a few hundred kilobytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(20_000 * 3 + 1) * 2000, 9)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b64encode(data).decode()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no picture": ({"image": None}, "input.image"),
    "base64 with junk": ({"image": GOOD["image"][:50] + "*" + GOOD["image"][50:]}, "input.image holds '*'"),
    "not a picture": ({"image": b64encode(b"hello, world").decode()}, "input.image is not a picture"),
    "truncated JPEG": (
        {"image": to_base64(photograph("coffee"), "JPEG")[:20_000]},
        "input.image is damaged or truncated",
    ),
    "bomb": ({"image": bomb()}, "input.image is 20000x20000 pixels"),
    "5 references": ({"image": None, "images": [GOOD["image"]] * 5}, "at most 4"),
    "lengths differ": ({"image": None, "images": [GOOD["image"]] * 3, "prompt": ["a", "b"]}, "lengths must match"),
    "empty prompt": ({"prompt": ""}, "input.prompt is empty"),
    "long prompt": ({"prompt": "x" * 20_000}, "input.prompt has 20000 characters"),
    "steps 0": ({"num_inference_steps": 0}, "input.num_inference_steps"),
    "steps -1": ({"num_inference_steps": -1}, "input.num_inference_steps"),
    "steps 1000": ({"num_inference_steps": 1000}, "input.num_inference_steps"),
    "steps four": ({"num_inference_steps": "four"}, "input.num_inference_steps"),
    "guidance -1": ({"guidance_scale": -1}, "input.guidance_scale"),
    "width 10": ({"width": 10}, "input.width"),
    "width 100000": ({"width": 100_000}, "input.width"),
    "azimut": ({"azimut": 45}, "Did you mean 'azimuth'?"),
}
BODIES = {
    "not JSON": ("hello", "not valid JSON"),
    "guidance NaN": ('{"input": {"image": "x", "prompt": "x", "guidance_scale": NaN}}', "input.guidance_scale"),
    "input missing": ("{}", "input is required"),
    "input a list": ('{"input": []}', "input must be a JSON object"),
}


@pytest.fixture(autouse=True)
def warm(service: Service) -> None:
    service.run(**GOOD)


@pytest.mark.parametrize(("fields", "message"), BAD.values(), ids=BAD.keys())
def test_bad_fields(service: Service, fields: dict[str, Any], message: str) -> None:
    before = num_jobs(service)
    check(service.post({**GOOD, **fields}), message)
    assert num_jobs(service) == before
    assert service.run(**GOOD)["status"] == "COMPLETED"


@pytest.mark.parametrize(("body", "message"), BODIES.values(), ids=BODIES.keys())
def test_bad_bodies(service: Service, body: str, message: str) -> None:
    before = num_jobs(service)
    headers = {"Content-Type": "application/json"}
    check(requests.post(f"{service.url}/runsync", data=body, headers=headers, timeout=30), message)
    assert num_jobs(service) == before
    assert service.run(**GOOD)["status"] == "COMPLETED"


def test_a_prompt_of_too_many_tokens_fails_its_job(service: Service) -> None:
    """Only the model's tokenizer can count them."""
    before = num_jobs(service)
    check(service.post({**GOOD, "prompt": "\U0001f389" * 1900}), "Shorten it")
    assert num_jobs(service) == {**before, "failed": before["failed"] + 1}
    assert service.run(**GOOD)["status"] == "COMPLETED"


def num_jobs(service: Service) -> dict[str, int]:
    """All jobs since the start, by their states."""
    jobs: dict[str, int] = requests.get(f"{service.url}/health", timeout=30).json()["jobs"]
    return jobs


def check(response: requests.Response, message: str) -> None:
    assert response.status_code == 400, response.text
    assert response.json().keys() == {"error"}
    assert message in response.json()["error"]


def test_kinds_of_pictures_that_must_work(service: Service) -> None:
    photo = photograph("coffee", 150, 100)
    kinds = {
        "PNG": to_base64(photo),
        "JPEG": to_base64(photo, "JPEG"),
        "WebP": to_base64(photo, "WEBP", lossless=True),
        "RGBA": to_base64(photo.convert("RGBA")),
        "CMYK": to_base64(photo.convert("CMYK"), "JPEG"),
        "palette": to_base64(photo.quantize()),
        "greyscale": to_base64(photo.convert("L")),
        "16-bit": to_base64(photo.convert("L").convert("I;16")),
        "data URL": f"data:image/png;base64,{to_base64(photo)}",
        "line breaks": "\n".join(to_base64(photo)[i : i + 76] for i in range(0, len(to_base64(photo)), 76)),
    }
    for kind, image in kinds.items():
        envelope = service.run(**{**GOOD, "image": image})
        assert from_base64(envelope["output"]["images"][0]).size == (320, 224), kind
    plain = service.run(**{**GOOD, "image": kinds["PNG"]})["output"]["images"]
    for same in ("WebP", "RGBA", "data URL", "line breaks"):
        assert service.run(**{**GOOD, "image": kinds[same]})["output"]["images"] == plain, same


def test_every_exif_orientation_is_turned_upright(service: Service) -> None:
    photo = photograph("coffee", 150, 100)
    stored = {
        1: photo,
        2: photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: photo.transpose(Image.Transpose.ROTATE_180),
        4: photo.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: photo.transpose(Image.Transpose.TRANSPOSE),
        6: photo.transpose(Image.Transpose.ROTATE_90),
        7: photo.transpose(Image.Transpose.TRANSVERSE),
        8: photo.transpose(Image.Transpose.ROTATE_270),
    }
    results = set()
    for orientation, picture in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = to_base64(picture, "PNG", exif=exif)
        results.add(service.run(**{**GOOD, "image": image})["output"]["images"][0])
    assert len(results) == 1
