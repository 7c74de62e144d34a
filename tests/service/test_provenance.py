"""Pictures of the running service are marked as made with generative AI, previews included."""

import base64
from io import BytesIO

import pytest
from openai import OpenAI
from PIL import Image

from tests.pictures import from_base64, photograph, to_base64, to_png
from tests.service.conftest import Service

MARK = b">http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia<"
SMALL = {"width": 64, "height": 64, "num_inference_steps": 1}


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_the_picture_of_a_job_is_marked(service: Service, name: str) -> None:
    image = to_base64(photograph("coffee", 64, 64))
    envelope = service.run(image=image, prompt="make it sunset", azimuth=90, output_format=name, **SMALL)
    assert MARK in from_base64(envelope["output"]["images"][0]).info["xmp"]


def test_previews_are_marked(service: Service) -> None:
    with OpenAI(api_key="None", base_url=f"{service.url}/v1", max_retries=0) as client:
        picture = to_png(photograph("coffee", 64, 64))
        prompt = "make it sunset"
        events = list(client.images.edit(image=picture, prompt=prompt, size="64x64", stream=True, partial_images=2))
    assert [event.type for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    for event in events:
        assert MARK in Image.open(BytesIO(base64.b64decode(event.b64_json))).info["xmp"]
