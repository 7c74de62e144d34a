"""OpenAI's own Python client, with nothing changed but the base URL, and the documented curl calls."""

import base64
import re
import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI, UnprocessableEntityError

from tests.conftest import ROOT
from tests.pictures import alike, from_base64, photograph, to_png
from tests.service.conftest import Service
from tests.service.receiver import Receiver

DOCUMENT = ROOT.parent / "shared" / "seeds" / "image-edit-api.md"
MODEL = "Qwen-Image-Edit-2511"
PNG = to_png(photograph("astronaut", 96, 64))
SECOND = to_png(photograph("coffee", 64, 64))
PROMPT = "make it sunset"
QUICK: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "size": "64x64"}
ONE_STEP = {"num_inference_steps": 1, "seed": 7}


@pytest.fixture
def client(service: Service) -> Iterator[OpenAI]:
    with OpenAI(api_key="None", base_url=f"{service.url}/v1", max_retries=0) as client:
        yield client


def by_runpod(service: Service, *pictures: bytes, **fields: Any) -> bytes:
    """The picture of the same edit through the RunPod dialect."""
    images = [base64.b64encode(picture).decode() for picture in pictures]
    envelope = service.run(images=images, prompt=PROMPT, **{"width": 64, "height": 64, **ONE_STEP, **fields})
    return base64.b64decode(envelope["output"]["images"][0])


def only(answer: Any) -> bytes:
    assert len(answer.data) == 1
    return base64.b64decode(answer.data[0].b64_json)


def test_one_file(client: OpenAI, service: Service) -> None:
    answer = client.images.edit(image=("upload", PNG), **QUICK, extra_body=ONE_STEP)
    assert only(answer) == by_runpod(service, PNG)
    assert answer.output_format == "png"
    assert answer.size == "64x64"
    assert answer.data[0].revised_prompt == PROMPT


def test_several_files_in_order(client: OpenAI, service: Service) -> None:
    answer = client.images.edit(image=[("a.png", PNG), ("b.png", SECOND)], **QUICK, extra_body=ONE_STEP)
    assert only(answer) == by_runpod(service, PNG, SECOND)


def test_a_buffer(client: OpenAI, service: Service) -> None:
    answer = client.images.edit(image=BytesIO(PNG), **QUICK, extra_body=ONE_STEP)
    assert only(answer) == by_runpod(service, PNG)


def test_urls_and_no_file(client: OpenAI, service: Service, receiver: Receiver) -> None:
    receiver.pictures["/bear.png"] = PNG
    second = f"data:image/png;base64,{base64.b64encode(SECOND).decode()}"
    answer = client.images.edit(
        image=[],
        model=MODEL,
        prompt=PROMPT,
        size="512x512",
        stream=False,
        output_format="jpeg",
        extra_body={
            "url": [f"{receiver.origin}/bear.png", second],
            "num_inference_steps": 3,
            "guidance_scale": 1,
            "seed": 777,
        },
    )
    drawn = only(answer)
    assert drawn[:3] == b"\xff\xd8\xff"
    settings = {"width": 512, "height": 512, "num_inference_steps": 3, "seed": 777}
    assert drawn == by_runpod(service, PNG, SECOND, output_format="jpeg", output_quality=100, **settings)


def test_a_url_that_may_not_be_fetched(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="may not fetch"):
        client.images.edit(image=[], **QUICK, extra_body={"url": "http://169.254.169.254/latest/meta-data/"})


def test_a_large_data_url(client: OpenAI) -> None:
    # Bytes after a PNG's end are ignored. Starlette's default limit for a form's text field is 1 MiB.
    url = f"data:image/png;base64,{base64.b64encode(PNG + bytes(2 * 2**20)).decode()}"
    assert len(url) > 2 * 2**20
    assert only(client.images.edit(image=[], **QUICK, extra_body={"url": [url], **ONE_STEP}))


def test_variants_use_successive_seeds(client: OpenAI, service: Service) -> None:
    answer = client.images.edit(image=PNG, **QUICK, n=4, extra_body=ONE_STEP)
    assert [each.seed for each in answer.data] == [7, 8, 9, 10]
    for each in answer.data:
        own = base64.b64encode(by_runpod(service, PNG, seed=each.seed)).decode()
        assert alike(each.b64_json, own)


def test_the_camera_fields_work(client: OpenAI, service: Service) -> None:
    camera = {"azimuth": 90, "distance": 0.6}
    answer = client.images.edit(image=PNG, **QUICK, extra_body={**ONE_STEP, **camera})
    assert only(answer) == by_runpod(service, PNG, **camera)
    assert answer.data[0].revised_prompt == f"<sks> right side view eye-level shot close-up {PROMPT}"


def test_an_adapter_by_extra_body_or_as_the_model(client: OpenAI, service: Service) -> None:
    plain = only(client.images.edit(image=PNG, **QUICK, extra_body=ONE_STEP))
    loras = [{"name": "cyanotype", "weight": 1.0}]
    named = only(client.images.edit(image=PNG, **QUICK, extra_body={**ONE_STEP, "loras": loras}))
    as_model = only(client.images.edit(image=PNG, **{**QUICK, "model": "cyanotype"}, extra_body=ONE_STEP))
    assert named == as_model == by_runpod(service, PNG, loras=loras)
    assert named != plain


@pytest.mark.parametrize(
    "fields", [{"extra_body": {"loras": [{"name": "cyanotipe"}]}}, {"model": "cyanotipe"}], ids=["loras", "model"]
)
def test_an_unknown_adapter_is_answered_with_the_closest_name(client: OpenAI, fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError, match=r"cyanotipe.*'cyanotype'"):
        client.images.edit(image=PNG, **{**QUICK, **fields})


def test_a_stream_shows_previews_and_then_the_picture(client: OpenAI, service: Service) -> None:
    steps = {"num_inference_steps": 4, "seed": 7}
    events = list(client.images.edit(image=PNG, **QUICK, stream=True, partial_images=3, extra_body=steps))
    assert [event.type for event in events] == ["image_edit.partial_image"] * 3 + ["image_edit.completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    assert len({event.b64_json for event in events}) == 4
    assert base64.b64decode(events[-1].b64_json) == by_runpod(service, PNG, num_inference_steps=4)
    usage = events[-1].usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens == (64 // 16) ** 2


def test_a_random_seed_is_returned_and_reproduces_the_picture(client: OpenAI) -> None:
    first = client.images.edit(image=PNG, **QUICK, extra_body={"num_inference_steps": 1})
    second = client.images.edit(image=PNG, **QUICK, extra_body={"num_inference_steps": 1})
    assert only(first) != only(second)
    again = client.images.edit(image=PNG, **QUICK, extra_body={"num_inference_steps": 1, "seed": first.data[0].seed})
    assert only(again) == only(first)


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [f"Qwen/{MODEL}", MODEL, "gpt-image-qwen", "cyanotype"]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(NotFoundError):
        client.models.retrieve("dall-e-2")


@pytest.mark.parametrize(
    ("fields", "kind", "message", "param"),
    [
        ({"size": "1024x"}, BadRequestError, "Invalid size format: '1024x'", "size"),
        ({"model": "dall-e-2"}, BadRequestError, "dall-e-2", "model"),
        ({"n": 11}, BadRequestError, "n must be between 1 and 10", "n"),
        ({"output_format": "gif"}, BadRequestError, "output_format", "output_format"),
        ({"background": "transparent"}, BadRequestError, "background", "background"),
        ({"image": []}, UnprocessableEntityError, "Field 'image' or 'url' is required", "image"),
    ],
)
def test_errors_have_the_clients_own_classes_and_messages(
    client: OpenAI, fields: dict[str, Any], kind: type[APIStatusError], message: str, param: str
) -> None:
    with pytest.raises(kind) as caught:
        client.images.edit(**{"image": PNG, **QUICK, **fields})
    assert message in str(caught.value)
    body: Any = caught.value.body
    assert body["message"] in str(caught.value)
    assert body["param"] == param
    assert caught.value.request_id


def test_the_same_key_is_the_same_picture(client: OpenAI, service: Service) -> None:
    headers = {"Idempotency-Key": "openai-1"}
    first = client.images.edit(image=PNG, **QUICK, extra_headers=headers)
    again = client.images.edit(image=PNG, **QUICK, extra_headers=headers)
    # No seed was sent: a second run would use another one.
    assert only(again) == only(first)
    with pytest.raises(UnprocessableEntityError, match="Idempotency-Key"):
        client.images.edit(image=SECOND, **QUICK, extra_headers=headers)


# The document's own curl calls, with only the placeholders replaced: host, model, files.

needs_document = pytest.mark.skipif(not DOCUMENT.exists(), reason="the users' API document is not beside this clone")


@needs_document
@pytest.mark.parametrize("number", [0, 1], ids=["one picture", "two pictures"])
def test_the_documents_curl_calls(service: Service, tmp_path: Path, number: int) -> None:
    (tmp_path / "xx.png").write_bytes(PNG)
    printed = run_bash(curl_call(number, service), tmp_path)
    assert re.search(r"x-request-id: \S+", printed, re.IGNORECASE)
    picture = from_base64(base64.b64encode((tmp_path / "gift-basket.png").read_bytes()).decode())
    assert (picture.format, picture.size) == ("PNG", (1024, 1024))


def curl_call(number: int, service: Service) -> str:
    """The document's calls with a picture, counted from 0."""
    calls = re.findall(r'curl -s -D.*?output_format=png"', DOCUMENT.read_text(), re.DOTALL)
    # The second one lacks the backslash that continues a line.
    call = re.sub(r'xx\.png"\n', 'xx.png" \\\\\n', calls[number])
    return call.replace("http://localhost:8000", service.url).replace("model=xxx", f"model={MODEL}")


def run_bash(program: str, folder: Path) -> str:
    # The process substitutions end after curl does.
    done = subprocess.run(
        ["bash", "-c", f"{program}\nsleep 1"], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_document
@pytest.mark.parametrize(
    ("fields", "files", "status"),
    [({"prompt": "x", "size": "1024x"}, {"image": PNG}, 400), ({"prompt": "x"}, {}, 422)],
    ids=["bad size", "no image"],
)
def test_the_documents_errors(service: Service, fields: dict[str, str], files: dict[str, bytes], status: int) -> None:
    parts = {name: (None, value) for name, value in fields.items()} | files
    response = requests.post(f"{service.url}/v1/images/edits", files=parts, timeout=60)
    assert response.status_code == status
    shown = re.findall(r'"detail": "(.*)"', DOCUMENT.read_text())[0 if status == 400 else 1]
    assert response.json()["detail"] == response.json()["error"]["message"] == shown
