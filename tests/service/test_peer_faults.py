"""Faults of another server of this model in OpenAI's dialect, one test each."""

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from PIL import Image

from tests.pictures import from_base64, photograph, pixels_of, to_base64, to_png
from tests.service.conftest import Service
from tests.service.receiver import Receiver

PNG = to_png(photograph("astronaut", 96, 64))
QUICK = {"prompt": "make it sunset", "size": "64x64", "num_inference_steps": "1", "seed": "7"}
LONG = {**QUICK, "size": "512x512", "num_inference_steps": "100"}


def edit(service: Service, picture: bytes = PNG, /, **fields: str) -> requests.Response:
    files = {"image": ("upload", picture)}
    return requests.post(f"{service.url}/v1/images/edits", data={**QUICK, **fields}, files=files, timeout=120)


def drawn(response: requests.Response) -> str:
    assert response.status_code == 200, response.text
    image: str = response.json()["data"][0]["b64_json"]
    return image


def refusal(response: requests.Response, status: int = 400) -> str:
    assert response.status_code == status, response.text
    assert response.json()["detail"] == response.json()["error"]["message"]
    return str(response.json()["detail"])


@pytest.mark.parametrize("n", ["11", "1000000", "0", "-1"])
def test_n_is_bounded(service: Service, n: str) -> None:
    assert "n must be between 1 and 10" in refusal(edit(service, n=n))


def test_an_unknown_format_is_refused(service: Service) -> None:
    assert "output_format must be png, jpeg or webp, got 'gif'" in refusal(edit(service, output_format="gif"))


def test_the_size_of_a_large_photograph_is_not_copied(service: Service) -> None:
    large = to_png(Image.new("RGB", (4000, 3000), "navy"))
    # The tiny profile draws the area of 256 x 256 pixels.
    assert from_base64(drawn(edit(service, large, size="auto"))).size == (288, 224)


def test_a_photograph_is_turned_upright(service: Service) -> None:
    upright = photograph("astronaut", 96, 64)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated by 90 degrees
    rotated = base64.b64decode(to_base64(upright.transpose(Image.Transpose.ROTATE_90), exif=exif))
    assert drawn(edit(service, rotated)) == drawn(edit(service, to_png(upright)))


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/latest/meta-data/", "http://127.0.0.1:1/", "http://[::1]/", "https://example.com/x"]
)
def test_a_url_that_is_not_allowed_is_not_fetched(service: Service, url: str) -> None:
    response = requests.post(f"{service.url}/v1/images/edits", json={**typed(QUICK), "url": url}, timeout=30)
    assert "is a URL that this server may not fetch" in refusal(response)


def test_a_fetch_is_capped(service: Service, receiver: Receiver) -> None:
    receiver.pictures["/huge.png"] = PNG + bytes(21 * 2**20)
    response = requests.post(
        f"{service.url}/v1/images/edits", json={**typed(QUICK), "url": f"{receiver.origin}/huge.png"}, timeout=30
    )
    assert "could not be fetched" in refusal(response)


def typed(form: dict[str, str]) -> dict[str, Any]:
    """A form's fields as JSON has them."""
    return {name: int(text) if text.isdecimal() else text for name, text in form.items()}


@pytest.mark.parametrize("stream", ["false", "true"])
def test_work_ends_when_the_client_leaves(service: Service, stream: str) -> None:
    request_id = f"leaving-{stream}"
    with pytest.raises(requests.ReadTimeout):
        requests.post(
            f"{service.url}/v1/images/edits",
            data={**LONG, "stream": stream, "partial_images": "0"},
            files={"image": PNG},
            headers={"x-request-id": request_id},
            timeout=(5, 1.0),
        )
    (after_s,) = service.logged(rf"edit {request_id} cancelled after ([\d.]+) s")
    print(f"the edit left the engine {after_s} s after it was sent")
    assert drawn(edit(service))
    assert f"edit {request_id} done" not in service.log


def test_a_long_prompt_is_the_clients_fault(service: Service) -> None:
    assert "prompt has 20000 characters; at most 4000" in refusal(edit(service, prompt="x" * 20_000))


def test_zero_steps_are_refused(service: Service) -> None:
    assert "num_inference_steps must be between 1 and 100, got 0" in refusal(edit(service, num_inference_steps="0"))


def test_a_random_seed_is_returned(service: Service) -> None:
    first = edit(service, seed="")
    again = edit(service, seed=str(first.json()["data"][0]["seed"]))
    assert drawn(again) == drawn(first)


def test_every_response_has_one_request_id(service: Service) -> None:
    for path in ("/v1/models", "/health", "/nope"):
        for sent in ({}, {"x-request-id": "mine-1"}):
            ids = requests.get(f"{service.url}{path}", headers=sent, timeout=30).raw.headers.getlist("x-request-id")
            assert len(ids) == 1
            assert ids[0]
            assert not sent or ids == ["mine-1"]


def test_edits_run_together(service: Service) -> None:
    fields = {"size": "128x128", "num_inference_steps": "20"}
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda number: edit(service, seed=str(number), **fields), range(4)))
    for answer in answers:
        assert drawn(answer)
    shared = service.logged(rf"edit {answers[0].headers['x-request-id']} done: .* shared_steps=(\d+)")
    assert int(shared[0]) > 0


def test_guidance_works_without_a_negative_prompt(service: Service) -> None:
    plain, guided = (pixels_of(from_base64(drawn(edit(service, true_cfg_scale=scale)))) for scale in ("1", "4"))
    assert (plain != guided).mean() > 0.5


@contextmanager
def streamed(service: Service, request_id: str, fields: dict[str, str]) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of four variants, as they come."""
    with requests.post(
        f"{service.url}/v1/images/edits",
        data={**fields, "n": "4", "stream": "true"},
        files={"image": PNG},
        headers={"x-request-id": request_id},
        stream=True,
        timeout=60,
    ) as response:
        lines = response.iter_lines(chunk_size=None)
        yield (json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: "))


def test_the_first_of_four_variants_is_streamed_before_the_last_is_made(service: Service) -> None:
    """A pack of the tiny profile holds three of them: if the client leaves after the first, the last is cancelled."""
    fields = {**QUICK, "size": "512x512", "num_inference_steps": "15"}
    with streamed(service, "first-only", fields) as events:
        assert next(events)["type"] == "image_edit.completed"
    service.logged(r"edit first-only\S* cancelled after")


def test_each_of_four_variants_is_streamed(service: Service) -> None:
    fields = {**QUICK, "size": "512x512", "num_inference_steps": "3"}
    with streamed(service, "all-four", fields) as events:
        arrived = list(events)
    assert [event["type"] for event in arrived] == ["image_edit.completed"] * 4
    assert {event["image_index"] for event in arrived} == {0, 1, 2, 3}
    for event in arrived:
        own = drawn(edit(service, **{**fields, "seed": str(7 + event["image_index"])}))
        assert abs(_levels(own) - _levels(event["b64_json"])).max() <= 1


def _levels(image: str) -> Any:
    return pixels_of(from_base64(image)).astype(int)
