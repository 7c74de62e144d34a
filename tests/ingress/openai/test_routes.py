"""OpenAI's dialect: every field in both encodings, every refusal, and the answer's shape."""

import base64
import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, get_type_hints

import openai
import pytest
from openai.types.image_edit_params import ImageEditParamsNonStreaming, ImageEditParamsStreaming
from PIL import Image

from serve_app.config import AppSettings
from serve_app.edits.camera import CameraPose
from serve_app.edits.request import EditRequest, OutputFormat, Rewrite, Sampling
from serve_app.edits.sizes import Size
from serve_app.errors import DeadlineExceeded, EditFailed, Overloaded, ServiceError, ServiceUnavailable
from serve_app.ingress.openai.request import OpenAIForm
from tests.fakes import TIMINGS
from tests.ingress.openai_harness import DATA_URL, EDITS, PNG, WIDE, Harness, Part, error_of, harness, kept_harness
from tests.pictures import photograph, to_base64

both = pytest.mark.parametrize("encoding", ["form", "json"])


@pytest.fixture
def app(tiny_settings: AppSettings) -> Harness:
    return kept_harness(tiny_settings)


def only(app: Harness) -> EditRequest:
    assert len(app.editor.requests) == 1
    return app.editor.requests[0]


@both
def test_an_answer_is_complete(app: Harness, encoding: str) -> None:
    before = int(time.time())
    response = app.edit(encoding, prompt="Make it sunset", seed=7, size="320x200")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert before <= body.pop("created") <= time.time()
    picture = {
        "b64_json": base64.b64encode(b"Make it sunset").decode(),
        "url": None,
        "revised_prompt": "Make it sunset",
        "seed": 7,
        "timings": asdict(TIMINGS),
    }
    assert body == {
        "data": [picture],
        "output_format": "png",
        "size": "320x200",
        "background": "opaque",
        "quality": "auto",
        "usage": {
            "input_tokens": 36,
            "input_tokens_details": {"image_tokens": 16, "text_tokens": 20},
            "output_tokens": 16,
            "total_tokens": 52,
        },
    }


@both
def test_absent_fields_have_defaults(app: Harness, encoding: str) -> None:
    drawn = app.edit(encoding).json()["data"][0]
    request = only(app)
    assert request.sampling == Sampling(drawn["seed"], 4, 1.0, " ")
    assert request.output == OutputFormat("png", 100)
    assert (request.size.final, request.prompt, request.num_previews) == (Size(256, 256), "x", 0)


@both
def test_all_fields_reach_the_editor(app: Harness, encoding: str) -> None:
    response = app.edit(
        encoding,
        model="Qwen-Image-Edit-2511",
        n=1,
        size="320x200",
        response_format="b64_json",
        output_format="jpg",
        output_compression=80,
        background="opaque",
        quality="hd",
        input_fidelity="high",
        user="somebody",
        stream=False,
        partial_images=3,
        negative_prompt="blurry",
        num_inference_steps=6,
        guidance_scale=1.2,
        seed=7,
        rewrite_prompt=True,
        azimuth=271,
        elevation=29,
        distance=1.7,
    )
    assert response.status_code == 200, response.text
    assert (response.json()["output_format"], response.json()["quality"]) == ("jpeg", "hd")
    request = only(app)
    assert request.prompt == f"{CameraPose(270, 30, 1.8).tokens} a precise wish"
    assert request.sampling == Sampling(7, 6, 1.2, "blurry")
    assert (request.size.made, request.size.final) == (Size(320, 208), Size(320, 200))
    assert request.output == OutputFormat("jpeg", 80)
    assert request.num_previews == 0, "there is no stream to show them in"


@pytest.mark.parametrize(
    "path", ["/v1/images/generations", "/v1/images/variations", "/v1/chat/completions", "/v1/responses"]
)
def test_other_routes_of_openai_name_the_one_for_edits(app: Harness, path: str) -> None:
    response = app.client.post(path, json={"model": "x", "prompt": "y"})
    assert response.status_code == 404
    assert "Edits go to POST /v1/images/edits" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "url", ["/images/edits", "/images/generations", "/v1/v1/images/edits", "/v2/any/openai/images/edits", "/models"]
)
def test_a_base_url_that_is_wrong_is_answered_in_this_dialect(app: Harness, url: str) -> None:
    """One without /v1, as for other servers, or with two, where the client adds its own."""
    problem = error_of(app.client.post(url, json={"prompt": "y"}), 404)
    assert "Edits go to POST /v1/images/edits" in problem["message"]


@pytest.mark.parametrize(
    "client",
    [
        lambda http: openai.OpenAI(api_key="x", base_url="http://testserver", http_client=http),
        lambda http: openai.AzureOpenAI(
            api_key="x", api_version="2025-04-01-preview", azure_endpoint="http://testserver", http_client=http
        ),
    ],
    ids=["no /v1", "Azure"],
)
def test_openais_clients_read_where_edits_go(app: Harness, client: Callable[[Any], openai.OpenAI]) -> None:
    edit = client(app.client).images.edit
    with pytest.raises(openai.NotFoundError, match="Edits go to POST /v1/images/edits"):
        edit(image=PNG, prompt="x", model="Qwen-Image-Edit-2511")


# The fields that clients send besides the pictures, as their source has them.
CLIENTS: dict[str, tuple[str, dict[str, str]]] = {
    # open-webui/open-webui, backend/open_webui/routers/images.py
    "Open WebUI": ("image[]", {"n": "1", "size": "512x512", "background": "auto", "response_format": "b64_json"}),
    # danny-avila/LibreChat, api/app/clients/tools/structured/OpenAIImageTools.js
    "LibreChat": ("image[]", {"quality": "auto", "size": "auto"}),
    # n8n-io/n8n, packages/@n8n/nodes-langchain/nodes/vendors/OpenAi/v2/actions/image/edit.operation.ts
    "n8n": (
        "image[]",
        {"n": "1", "size": "1024x1024", "user": "user-12345", "background": "opaque", "input_fidelity": "low"}
        | {"output_format": "webp", "output_compression": "100", "quality": "standard"},
    ),
    # Comfy-Org/ComfyUI, comfy_api_nodes/nodes_openai.py
    "ComfyUI": (
        "image",
        {"quality": "xhigh", "background": "opaque", "n": "1", "seed": "2147483647", "size": "1024x1024"}
        | {"moderation": "low"},
    ),
    # vercel/ai, packages/openai/src/image/openai-image-model.ts
    "AI SDK": (
        "image",
        {"n": "1", "size": "1024x1024", "quality": "max", "background": "auto", "output_format": "jpeg"}
        | {"output_compression": "80", "complexity": "low", "input_fidelity": "high", "user": "u"}
        | {"safety_identifier": "u"},
    ),
}


@pytest.mark.parametrize(("picture", "fields"), CLIENTS.values(), ids=CLIENTS)
def test_what_known_clients_send(app: Harness, picture: str, fields: dict[str, str]) -> None:
    parts: list[Part] = [("model", "Qwen-Image-Edit-2511"), ("prompt", "x"), (picture, PNG)]
    response = app.form(*parts, *fields.items())
    assert response.status_code == 200, response.text
    assert "b64_json" in response.json()["data"][0]


@both
def test_hints_have_no_effect(app: Harness, encoding: str) -> None:
    hints = {"moderation": "low", "safety_identifier": "u-1", "complexity": "high", "user": "u-1"}
    assert app.edit(encoding, **hints).status_code == 200
    assert only(app).prompt == "x"


@pytest.mark.parametrize("parameters", [ImageEditParamsStreaming, ImageEditParamsNonStreaming])
def test_every_field_of_the_sdk_is_known(parameters: type) -> None:
    assert get_type_hints(parameters).keys() <= OpenAIForm.model_fields.keys()


@both
def test_seed_minus_one_draws_a_seed_and_returns_it(app: Harness, encoding: str) -> None:
    seeds = [app.edit(encoding, seed=-1).json()["data"][0]["seed"] for _ in range(2)]
    assert [request.sampling.seed for request in app.editor.requests] == seeds
    assert len(set(seeds)) == 2


def test_texts_of_a_form_are_read_as_numbers(app: Harness) -> None:
    texts = {"num_inference_steps": "5.0", "guidance_scale": "1e-07", "seed": "0", "rewrite_prompt": "TRUE", "n": "1"}
    assert app.edit("form", **texts).status_code == 200
    assert only(app).sampling == Sampling(0, 5, 1e-07, " ")
    assert len(app.rewriter.jobs) == 1


def test_empty_texts_of_a_form_are_absent(app: Harness) -> None:
    names = ("model", "n", "size", "response_format", "output_format", "output_compression", "background", "quality")
    more = ("stream", "mask", "seed", "guidance_scale", "azimuth", "views", "url", "image[]")
    assert app.edit("form", **dict.fromkeys((*names, *more), "")).status_code == 200
    assert only(app).prompt == "x"


def test_null_is_absent(app: Harness) -> None:
    nulls = dict.fromkeys(("model", "n", "size", "background", "stream", "mask", "seed", "views", "url", "images"))
    assert app.edit("json", **nulls).status_code == 200
    assert only(app).prompt == "x"


@both
@pytest.mark.parametrize("prompt", ["'make it sunset'", ' "quoted" ', "zwei Bären"])
def test_the_prompt_stays_as_it_is(app: Harness, encoding: str, prompt: str) -> None:
    assert app.edit(encoding, prompt=prompt).json()["data"][0]["revised_prompt"] == prompt
    assert only(app).prompt == prompt


@both
def test_true_cfg_scale_wins_and_needs_no_negative_prompt(app: Harness, encoding: str) -> None:
    app.edit(encoding, guidance_scale=9.0, true_cfg_scale=2.0)
    assert only(app).sampling.true_cfg_scale == 2.0
    assert only(app).sampling.negative_prompt == " "


# How clients send pictures. The first one gives the size, so it shows the order.

COPIES: dict[str, list[Part]] = {
    "a file": [("image", WIDE)],
    "files": [("image", WIDE), ("image", PNG)],
    "files in a list": [("image[]", WIDE), ("image[]", PNG)],
    "a list of one": [("image[]", WIDE)],
    "both kinds of names": [("image[]", WIDE), ("image", PNG), ("image[]", PNG)],
    "data URLs": [("url[]", f"data:image/png;base64,{base64.b64encode(WIDE).decode()}"), ("url[]", DATA_URL)],
    "one data URL": [("url", f"data:image/png;base64,{base64.b64encode(WIDE).decode()}")],
    "a text called image": [("image", f"data:image/png;base64,{base64.b64encode(WIDE).decode()}")],
    "base64 without a prefix": [("image[]", base64.b64encode(WIDE).decode())],
    "texts before files": [
        ("url", f"data:;base64,{base64.b64encode(WIDE).decode()}"),
        ("image", PNG),
        ("url", DATA_URL),
    ],
    "files before texts": [("image", WIDE), ("url[]", DATA_URL), ("image", PNG), ("image[]", DATA_URL)],
}


@pytest.mark.parametrize("parts", COPIES.values(), ids=COPIES.keys())
def test_pictures_of_a_form_keep_their_order(app: Harness, parts: list[Part]) -> None:
    response = app.form(("prompt", "x"), *parts)
    assert response.status_code == 200, response.text
    assert [len(pictures) for pictures in app.shared] == [len(parts)]
    assert [picture.vae_pixels.shape for picture in app.shared[0]] == [(224, 320, 3)] + [(256, 256, 3)] * (
        len(parts) - 1
    )
    assert response.json()["size"] == "320x224"


def test_pictures_of_json_keep_their_order(app: Harness) -> None:
    wide = base64.b64encode(WIDE).decode()
    body = {"url": [wide], "prompt": "x", "images": [{"image_url": DATA_URL}], "image": DATA_URL}
    assert app.json(**body).json()["size"] == "320x224"
    assert [len(pictures) for pictures in app.shared] == [3]
    assert app.json(**dict(reversed(body.items()))).json()["size"] == "256x256"


def test_a_form_without_files_may_be_urlencoded(app: Harness) -> None:
    response = app.client.post(EDITS, data={"prompt": "a & b", "url": DATA_URL, "n": "2"})
    assert len(response.json()["data"]) == 2
    assert app.editor.requests[0].prompt == "a & b"


def test_a_body_without_content_type_is_json_and_bare_line_breaks_are_read(app: Harness) -> None:
    body = b'{"prompt": "x", "image": "%s"}' % base64.encodebytes(PNG)
    assert body.count(b"\n") > 10
    assert app.client.post(EDITS, content=body).status_code == 200


def test_a_file_input_that_was_left_empty_is_absent(app: Harness) -> None:
    files: list[tuple[str, Any]] = [("image", ("", b"")), ("image", ("a", PNG)), ("prompt", (None, "x"))]
    assert app.client.post(EDITS, files=files).status_code == 200
    assert len(app.shared[0]) == 1


def test_a_data_url_above_a_megabyte_is_taken(app: Harness) -> None:
    padded = PNG + bytes(2 * 2**20)  # what follows a PNG's end is not read
    url = f"data:image/png;base64,{base64.b64encode(padded).decode()}"
    assert app.form(("prompt", "x"), ("url", url)).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/json"])
def test_a_body_above_the_limit_is_refused(app: Harness, kind: str, chunked: bool) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' if "boundary" in kind else b'{"prompt": "'
    body = head + b"A" * app.settings.limits.max_body_bytes
    content = iter([body]) if chunked else body
    problem = error_of(app.client.post(EDITS, content=content, headers={"content-type": kind}), 413)
    assert "larger than the 20971520 bytes" in problem["message"]


def test_a_sideways_photo_is_turned_upright(app: Harness) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = base64.b64decode(to_base64(photograph("coffee", 90, 60), "JPEG", exif=exif.tobytes()))
    assert app.form(("prompt", "x"), ("image", sideways)).json()["size"] == "224x320"


@both
def test_auto_keeps_the_aspect_and_not_the_size_of_a_large_photo(app: Harness, encoding: str) -> None:
    buffer = io.BytesIO()
    photograph("coffee", 600, 400).resize((4500, 3000)).save(buffer, "JPEG")
    fields: dict[str, Any] = {"prompt": "x", "size": "auto"}
    photo = buffer.getvalue()
    if encoding == "json":
        response = app.json(image=base64.b64encode(photo).decode(), **fields)
    else:
        response = app.form(("image", photo), *fields.items())
    assert response.json()["size"] == "320x224"


def test_a_size_that_follows_from_the_picture_is_bounded(tiny_settings: AppSettings) -> None:
    limits = tiny_settings.limits.model_copy(update={"max_side_px": 300})
    app = harness(tiny_settings.model_copy(update={"limits": limits}))
    problem = error_of(app.form(("prompt", "x"), ("image", WIDE)), 400)
    assert problem["param"] == "size"
    assert problem["message"].startswith("size would be 320 pixels")


# Several pictures from one request.


@both
def test_variants_share_their_pictures_and_use_successive_seeds(app: Harness, encoding: str) -> None:
    body = app.edit(encoding, n=3, seed=40).json()
    assert [picture["seed"] for picture in body["data"]] == [40, 41, 42]
    assert [request.sampling.seed for request in app.editor.requests] == [40, 41, 42]
    assert len(app.shared) == 1
    assert body["usage"]["total_tokens"] == 3 * 52
    ids = [request.request_id for request in app.editor.requests]
    assert len(set(ids)) == 3


@both
def test_a_drawn_seed_is_told(app: Harness, encoding: str) -> None:
    seeds = [app.edit(encoding, n=2).json()["data"] for _ in range(2)]
    drawn = [[picture["seed"] for picture in pictures] for pictures in seeds]
    assert drawn[0] != drawn[1]
    assert [request.sampling.seed for request in app.editor.requests] == [*drawn[0], *drawn[1]]
    assert all(second == first + 1 and 0 <= first < 2**31 for first, second in drawn)


VIEWS: dict[str, tuple[Any, list[CameraPose]]] = {
    "poses": (
        [{"azimuth": 90}, {"azimuth": 44.0, "distance": 0.6}],
        [CameraPose(90, 30, 1.0), CameraPose(45, 30, 0.6)],
    ),
    "orbit of three": ("orbit:3", [CameraPose(0, 30, 1.0), CameraPose(135, 30, 1.0), CameraPose(225, 30, 1.0)]),
}


@both
@pytest.mark.parametrize(("views", "poses"), VIEWS.values(), ids=VIEWS.keys())
def test_views_are_one_picture_each(app: Harness, encoding: str, views: Any, poses: list[CameraPose]) -> None:
    body = app.edit(encoding, prompt="", views=views, elevation=30, seed=5).json()
    assert [picture["revised_prompt"] for picture in body["data"]] == [pose.tokens for pose in poses]
    assert {picture["seed"] for picture in body["data"]} == {5}
    assert len(app.shared) == 1


@both
def test_a_camera_needs_no_prompt(app: Harness, encoding: str) -> None:
    response = app.json(image=DATA_URL, azimuth=0) if encoding == "json" else app.form(("image", PNG), ("azimuth", "0"))
    assert response.json()["data"][0]["revised_prompt"] == "<sks> front view eye-level shot medium shot"


def test_a_failed_rewriting_is_told(app: Harness) -> None:
    app.rewriter.answer = Rewrite(None, "it said nothing")
    picture = app.edit("json", rewrite_prompt=True).json()["data"][0]
    assert (picture["revised_prompt"], picture["rewrite_problem"]) == ("x", "it said nothing")
    app.rewriter.answer = Rewrite("better")
    picture = app.edit("json", rewrite_prompt=True).json()["data"][0]
    assert picture["revised_prompt"] == "better"
    assert "rewrite_problem" not in picture


# Refusals.

REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "size without height": (
        {"size": "1024x"},
        "size",
        "Invalid size format: '1024x'. Expected format: 'WIDTHxHEIGHT' (e.g., '1024x1024').",
    ),
    "size in words": ({"size": "large"}, "size", "Invalid size format: 'large'. Expected format: 'WIDTHxHEIGHT'"),
    "size of other digits": ({"size": "\u0661\u0662\u0668x128"}, "size", "Invalid size format"),
    "size too small": ({"size": "63x64"}, "size", "size must have sides between 64 and 2048 pixels, got '63x64'."),
    "size too large": ({"size": "64x2049"}, "size", "size must have sides between 64 and 2048 pixels"),
    "another model": (
        {"model": "dall-e-2"},
        "model",
        "model 'dall-e-2' is not served here. Use 'Qwen/Qwen-Image-Edit-2511' or 'Qwen-Image-Edit-2511' or 'cyanotype'",
    ),
    "n 0": ({"n": 0}, "n", "n must be between 1 and 10, got 0."),
    "n 11": ({"n": 11}, "n", "n must be between 1 and 10, got 11."),
    "n a word": ({"n": "two"}, "n", "n must be a whole number, got 'two'."),
    "n a fraction": ({"n": 1.5}, "n", "n must be a whole number, got 1.5."),
    "n true": ({"n": True}, "n", "n must be a whole number, got True."),
    "response format": ({"response_format": "url"}, "response_format", "response_format must be b64_json, got 'url'."),
    "output format": ({"output_format": "gif"}, "output_format", "output_format must be png, jpeg or webp, got 'gif'."),
    "compression 101": ({"output_compression": 101}, "output_compression", "must be between 0 and 100, got 101."),
    "compression -1": ({"output_compression": -1}, "output_compression", "must be between 0 and 100, got -1."),
    "transparent": ({"background": "transparent"}, "background", "the model draws opaque pictures"),
    "background": ({"background": "red"}, "background", "background must be auto or opaque, got 'red'."),
    "quality": ({"quality": "best"}, "quality", "or hd, got 'best'."),
    "fidelity": ({"input_fidelity": "auto"}, "input_fidelity", "input_fidelity must be high or low, got 'auto'."),
    "markup": ({"markup": DATA_URL}, "markup", "describe the change in the prompt"),
    "frames of a GIF": ({"frame_count": 4}, "frame_count", "Leave it out and use png, jpeg or webp"),
    "an SVG's author": ({"svg": {"model": "x"}}, "svg", "Leave it out and use png, jpeg or webp"),
    "a mask": ({"mask": DATA_URL}, "mask", "describe the region in the prompt"),
    "stream a word": ({"stream": "yes"}, "stream", "stream must be true or false, got 'yes'."),
    "partial images 4": ({"partial_images": 4}, "partial_images", "must be between 0 and 3, got 4."),
    "steps 0": ({"num_inference_steps": 0}, "num_inference_steps", "must be between 1 and 100, got 0."),
    "steps 101": ({"num_inference_steps": 101}, "num_inference_steps", "must be between 1 and 100, got 101."),
    "guidance -1": ({"guidance_scale": -1}, "guidance_scale", "must be between 0.0 and 20.0, got -1.0."),
    "guidance a word": ({"guidance_scale": "nan"}, "guidance_scale", "must be a finite number, got 'nan'."),
    "cfg 21": ({"true_cfg_scale": 21}, "true_cfg_scale", "must be between 0.0 and 20.0, got 21.0."),
    "seed -2": ({"seed": -2}, "seed", "seed must be between 0 and"),
    "a seed without a next one": ({"seed": 2**63 - 1, "n": 2}, "seed", "seed must be between 0 and"),
    "an azimuth in words": ({"azimuth": "left"}, "azimuth", "azimuth must be a finite number, got 'left'."),
    "an empty prompt": ({"prompt": ""}, "prompt", "prompt is empty: give an instruction, or a camera pose, or both."),
    "a blank prompt": ({"prompt": " "}, "prompt", "prompt is empty"),
    "a long prompt": ({"prompt": "x" * 4001}, "prompt", "prompt has 4001 characters; at most 4000 are allowed."),
    "a long negative prompt": ({"negative_prompt": "x" * 4001}, "negative_prompt", "has 4001 characters"),
    "no views": ({"views": []}, "views", "views is empty"),
    "an empty view": ({"views": [{}]}, "views[0]", "views[0] is empty"),
    "a wide orbit": ({"views": "orbit:9"}, "views", "with N from 1 to 8, got 'orbit:9'."),
    "too many views": ({"views": [{"azimuth": 0}] * 17}, "views", "views holds 17 poses; at most 16"),
    "views and variants": ({"views": "orbit", "n": 2}, "n", "n cannot be above 1 with views"),
    "views and azimuth": ({"views": "orbit", "azimuth": 1}, "azimuth", "azimuth cannot be combined with views"),
    "an unknown field in a view": ({"views": [{"azimut": 1}]}, "views[0].azimut", "Did you mean 'azimuth'?"),
    "a misspelt field": ({"guidance": 1}, "guidance", "Unknown field 'guidance'. Did you mean 'guidance_scale'?"),
    "a misspelt picture": ({"imag": DATA_URL}, "imag", "Did you mean 'image'?"),
    "a field of generations": ({"style": "vivid"}, "style", "Unknown field 'style'. Known fields:"),
    "another unknown field": ({"zzz": ""}, "zzz", "Unknown field 'zzz'. Known fields: azimuth, background, distance,"),
    "a field called query": ({"query": 1}, "query", "Unknown field 'query'."),
    "a field called body": ({"body": 1}, "body", "Unknown field 'body'."),
    "a scalar in brackets": ({"views[][azimuth]": 1}, "views[][azimuth]", "Did you mean 'views'?"),
}


@both
@pytest.mark.parametrize(("fields", "param", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_values_name_the_field_and_the_fix(
    app: Harness, encoding: str, fields: dict[str, Any], param: str, message: str
) -> None:
    problem = error_of(app.edit(encoding, **fields), 400)
    assert message in problem["message"]
    assert (problem["param"], problem["type"]) == (param, "invalid_request_error")
    assert app.editor.requests == []
    assert app.edit(encoding).status_code == 200


def test_the_documents_error_for_a_size_holds_to_the_letter(app: Harness) -> None:
    shown = "Invalid size format: '1024x'. Expected format: 'WIDTHxHEIGHT' (e.g., '1024x1024')."
    assert error_of(app.edit("form", size="1024x"), 400)["message"] == shown


@both
def test_missing_fields_are_422(app: Harness, encoding: str) -> None:
    no_picture, no_prompt = (
        (app.json(prompt="x"), app.json(url=[DATA_URL]))
        if encoding == "json"
        else (app.form(("prompt", "x")), app.form(("image", PNG)))
    )
    problem = error_of(no_picture, 422)
    assert problem["message"] == "Field 'image' or 'url' is required"
    assert problem["code"] == "missing_field"
    assert error_of(no_prompt, 422)["message"] == "Field 'prompt' is required"


PICTURES: dict[str, tuple[list[Part], str, str]] = {
    "no picture": ([("image", b"hello")], "image", "image is not a picture."),
    "an empty file": ([("image", b"")], "image", "image is not a picture."),
    "the second of several": ([("image[]", PNG), ("image", b"hello")], "image[1]", "image[1] is not a picture."),
    "a PDF": ([("image", b"%PDF-1.7 ....")], "image", "image is a PDF file"),
    "no base64": ([("url", "@@@@")], "url", "url holds '@', which is not base64."),
    "the second URL": ([("url[]", DATA_URL), ("url[]", "@@@@")], "url[1]", "url[1] holds '@'"),
    "an address inside": ([("url", "http://169.254.169.254/latest")], "url", "a URL that this server may not fetch."),
    "a file address": ([("image", "file:///etc/passwd")], "image", "is a URL that begins with"),
    "five pictures": ([("image", PNG)] * 5, "image", "5 pictures; at most 4 can be references of one edit."),
    "a mask file": ([("image", PNG), ("mask", PNG)], "mask", "describe the region in the prompt"),
}


@pytest.mark.parametrize(("parts", "param", "message"), PICTURES.values(), ids=PICTURES.keys())
def test_bad_pictures_are_named(app: Harness, parts: list[Part], param: str, message: str) -> None:
    problem = error_of(app.form(("prompt", "x"), *parts), 400)
    assert message in problem["message"]
    assert problem["param"] == param
    assert app.editor.requests == []


PARTS: dict[str, tuple[list[Part], str]] = {
    "two prompts": ([("prompt", "x"), ("prompt", "y")], "prompt comes more than once. Give it once."),
    "an empty one and another": ([("prompt", "x"), ("seed", ""), ("seed", "1")], "seed comes more than once."),
    "a prompt in a file": ([("prompt", b"x")], "prompt must be a string, got a file."),
    "a number in a file": ([("prompt", "x"), ("n", b"1")], "n must be a whole number, got a file."),
    "a list called images": ([("prompt", "x"), ("images", PNG)], "Unknown field 'images'. Did you mean 'image'?"),
    "101 texts": ([("url[]", DATA_URL)] * 101, "The form cannot be read: Too many fields."),
    "101 files": ([("image", b"x")] * 101, "The form cannot be read: Too many files."),
}


@pytest.mark.parametrize(("parts", "message"), PARTS.values(), ids=PARTS.keys())
def test_odd_forms_are_refused(app: Harness, parts: list[Part], message: str) -> None:
    assert message in error_of(app.form(("image", PNG), *parts), 400)["message"]


BODIES: dict[str, tuple[str, bytes, int, str]] = {
    "no boundary": ("multipart/form-data", b"--x--", 400, "The form cannot be read: Missing boundary in multipart."),
    "no form": ("multipart/form-data; boundary=x", b"{}", 400, "The form cannot be read: Invalid multipart data."),
    "a part without a name": (
        "multipart/form-data; boundary=x",
        b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n",
        400,
        'The form cannot be read: The Content-Disposition header field "name" must be provided.',
    ),
    "a charset that cannot decode": (
        "multipart/form-data; boundary=x; charset=undefined",
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--x--\r\n',
        400,
        "The form cannot be read",
    ),
    "an empty form": ("multipart/form-data; boundary=x", b"", 422, "Field 'prompt' is required"),
    "plain text": ("text/plain", b"prompt=x", 400, "The body is not valid JSON. Send one JSON object."),
    "a page": ("text/html", b"{}", 400, "must be multipart/form-data or application/json, got 'text/html'."),
    "no JSON": ("application/json", b"prompt=x", 400, "The body is not valid JSON. Send one JSON object."),
    "nothing": ("application/json", b"", 400, "The body is not valid JSON."),
    "no UTF-8": ("application/json", b'{"prompt": "\xff"}', 400, "its text is not UTF-8."),
    # By default, Java's StringEntity is in Latin-1, whatever the Content-Type says.
    "Latin-1": ("application/json", '{"prompt": "Bär"}'.encode("latin-1"), 400, "its text is not UTF-8."),
    "UTF-16": ("application/json", '{"prompt": "x"}'.encode("utf-16"), 400, "its text is not UTF-8."),
    "nested": ("application/json", b"[" * 100_000, 400, "The body is nested more than 32 levels deep."),
    "a list": ("application/json", b"[]", 400, "The body must be a JSON object"),
    "NaN": ("application/json", b'{"guidance_scale": NaN}', 400, "guidance_scale must be a finite number, got nan."),
    "infinity": ("application/json", b'{"seed": 1e999}', 400, "seed must be a whole number, got inf."),
    "a field of 1 MB": ("application/json", b'{"%s": 1}' % (b"y" * 2**20), 400, f"Unknown field '{'y' * 40}…'."),
    "half a character": ("application/json", b'{"prompt": "\\ud83d"}', 400, "prompt must be valid Unicode text"),
    "half a character's field": ("application/json", b'{"\\ud83d": 1}', 400, "valid string"),
    "a list of numbers": ("application/json", b'{"image": [1]}', 400, "image must be a string or a list of strings"),
    "images as text": ("application/json", b'{"images": "x"}', 400, "images must be a list like"),
    "images of texts": ("application/json", b'{"images": ["x"]}', 400, "images[0] must be a JSON object"),
    "an image's field": (
        "application/json",
        b'{"images": [{"image_url": "x", "image_ur": "x"}]}',
        400,
        "Unknown field 'images[0].image_ur'. Did you mean 'image_url'?",
    ),
    "a file's id": ("application/json", b'{"images": [{"file_id": "x"}]}', 400, "images[0].image_url is required."),
}


@pytest.mark.parametrize(("kind", "body", "status", "message"), BODIES.values(), ids=BODIES.keys())
def test_bad_bodies_are_told(app: Harness, kind: str, body: bytes, status: int, message: str) -> None:
    response = app.client.post(EDITS, content=body, headers={"content-type": kind})
    assert message in error_of(response, status)["message"]


@pytest.mark.parametrize(
    ("problem", "status", "kind", "code"),
    [
        (Overloaded("full"), 429, "invalid_request_error", "overloaded"),
        (ServiceUnavailable("gone"), 503, "server_error", "unavailable"),
        (EditFailed("broken"), 500, "server_error", "edit_failed"),
        (DeadlineExceeded("late"), 504, "server_error", "deadline_exceeded"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_becomes_of_an_edit_is_the_status(
    app: Harness, problem: ServiceError, status: int, kind: str, code: str, stream: bool
) -> None:
    app.editor.problem = problem
    response = app.edit("form", stream=stream, n=2)
    expected = {"message": problem.message, "type": kind, "param": None, "code": code}
    assert error_of(response, status) == expected
    assert ("retry-after" in response.headers) == (status in (429, 503))


@pytest.mark.parametrize("stream", [False, True])
def test_an_unexpected_error_tells_nothing_of_itself(app: Harness, stream: bool) -> None:
    app.editor.problem = RuntimeError("secret detail")
    response = app.edit("json", stream=stream)
    assert "secret" not in response.text
    assert error_of(response, 500)["code"] == "internal_error"


def test_limits_are_the_settings(tiny_settings: AppSettings) -> None:
    limits = tiny_settings.limits.model_copy(update={"max_edits_per_request": 4, "max_pictures_per_edit": 1})
    app = harness(tiny_settings.model_copy(update={"limits": limits, "served_model_names": ("ours",)}))
    assert error_of(app.edit("form", n=5), 400)["message"] == "n must be between 1 and 4, got 5."
    assert "at most 4" in error_of(app.edit("form", views="orbit:5"), 400)["message"]
    assert "at most 1" in error_of(app.form(("prompt", "x"), ("image", PNG), ("image", PNG)), 400)["message"]
    assert "Use 'ours'" in error_of(app.edit("form", model="Qwen-Image-Edit-2511"), 400)["message"]
    assert app.edit("form", model="ours").status_code == 200


# Around the edits.


def test_models_are_listed_and_found(app: Harness) -> None:
    for prefix in ("/v1", "/v2/any/openai/v1"):
        body = app.client.get(f"{prefix}/models").json()
        assert body["object"] == "list"
        names = ["Qwen/Qwen-Image-Edit-2511", "Qwen-Image-Edit-2511", "cyanotype"]
        assert [model["id"] for model in body["data"]] == names
        for model in body["data"]:
            of_adapters = {"parent"} if model["id"] == "cyanotype" else set()
            assert model.keys() == {"id", "object", "created", "owned_by", *of_adapters}
            assert app.client.get(f"{prefix}/models/{model['id']}").json() == model
            assert app.client.get(f"{prefix}/models/{model['id'].replace('/', '%2F')}").json() == model
    problem = error_of(app.client.get("/v1/models/dall-e-2"), 404)
    assert (problem["param"], problem["code"]) == ("model", "model_not_found")


def test_edits_stand_under_any_endpoints_id(app: Harness) -> None:
    response = app.client.post(f"/v2/any/openai{EDITS}", json={"prompt": "x", "url": DATA_URL})
    assert response.status_code == 200
    refused = app.client.post(f"/v2/any/openai{EDITS}", json={"prompt": "x"})
    assert error_of(refused, 422)["message"] == "Field 'image' or 'url' is required"


def test_a_sane_request_id_is_kept_and_names_the_edits(app: Harness) -> None:
    response = app.form(("prompt", "x"), ("image", PNG), **{"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    assert only(app).request_id == "mine-1"


def test_without_a_key_nothing_is_answered(tiny_settings: AppSettings) -> None:
    app = harness(tiny_settings, api_keys=("secret",))
    assert error_of(app.edit("form"), 401)["code"] == "unauthorized"
    error_of(app.client.get("/v1/models"), 401)
    assert app.form(("prompt", "x"), ("image", PNG), authorization="Bearer secret").status_code == 200


def test_wrong_routes_are_told_in_this_dialect(app: Harness) -> None:
    assert "/docs" in error_of(app.client.post("/v1/images/edit"), 404)["message"]
    response = app.client.get(EDITS)
    assert "/docs" in error_of(response, 405)["message"]
    assert response.headers["allow"] == "POST"


def test_the_docs_show_both_bodies(app: Harness) -> None:
    docs = app.client.get("/openapi.json").json()
    operation = docs["paths"][EDITS]["post"]
    bodies = operation["requestBody"]["content"]
    form, as_json = (bodies[kind] for kind in ("multipart/form-data", "application/json"))
    assert form["schema"]["properties"]["image"]["items"] == {"type": "string", "format": "binary"}
    assert {"images", "image", "url", "prompt", "views"} <= as_json["schema"]["properties"].keys()
    for body in (form, as_json):
        assert body["examples"].keys() == {"single", "several", "camera", "views", "stream"}
        for example in body["examples"].values():
            assert example["value"].keys() <= body["schema"]["properties"].keys()
    assert operation["responses"].keys() >= {"200", "400", "401", "404", "413", "422", "429", "500", "503"}
    assert operation["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/OpenAIError")
    assert operation["responses"]["200"]["content"].keys() == {"application/json", "text/event-stream"}


def test_the_docs_refer_to_nothing_that_is_not_there(app: Harness) -> None:
    docs = app.client.get("/openapi.json").json()
    named = {part.split('"')[0] for part in json.dumps(docs).split('"$ref": "#/components/schemas/')[1:]}
    assert named
    assert named <= docs["components"]["schemas"].keys()


def test_the_docs_examples_are_taken(app: Harness) -> None:
    docs = app.client.get("/openapi.json").json()
    examples = docs["paths"][EDITS]["post"]["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        body = {**example["value"], "images": [{"image_url": DATA_URL}] * len(example["value"]["images"])}
        assert app.json(**body).status_code == 200
