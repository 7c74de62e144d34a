"""RunPod's dialect without Ray: the routes over a service whose ports answer at once."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from serve_app.config import AppSettings
from serve_app.edits.camera import CameraPose
from serve_app.edits.request import OutputFormat, Pictures, Sampling
from serve_app.edits.service import EditService
from serve_app.edits.sizes import Size
from serve_app.errors import EditFailed, InvalidInput, Overloaded, ServiceError, ServiceUnavailable
from serve_app.ingress.app import build_app
from serve_app.ingress.sync import Backend
from tests.fakes import FakeEditor, FakeRewriter
from tests.pictures import photograph, to_base64

PICTURE = to_base64(photograph("astronaut", 64, 64))
WIDE = to_base64(photograph("coffee", 90, 60))


@dataclass
class Harness:
    """The app over HTTP, and what stands behind it."""

    client: TestClient
    editor: FakeEditor
    rewriter: FakeRewriter
    shared: list[Pictures]

    def run(self, **fields: Any) -> Response:
        return self.client.post("/v2/any/runsync", json={"input": fields})

    def refusal(self, **fields: Any) -> str:
        response = self.run(**fields)
        assert response.status_code == 400, response.text
        assert response.json().keys() == {"error"}
        return str(response.json()["error"])


@pytest.fixture
def app(tiny_settings: AppSettings) -> Harness:
    shared: list[Pictures] = []

    def share(pictures: Pictures) -> Pictures:
        shared.append(pictures)
        return pictures

    async def workers() -> dict[str, int]:
        return {"idle": 1, "ready": 1}

    editor, rewriter = FakeEditor(), FakeRewriter()
    backend = Backend(tiny_settings, EditService(editor, rewriter), share, workers)
    return Harness(TestClient(build_app(backend), raise_server_exceptions=False), editor, rewriter, shared)


def test_an_envelope_is_complete(app: Harness) -> None:
    envelope = app.run(image=PICTURE, prompt="Make it sunset", seed=1337).json()
    assert envelope.keys() == {"id", "status", "delayTime", "executionTime", "workerId", "output"}
    assert envelope["id"].startswith("sync-")
    assert envelope["id"].endswith("-u1")
    assert (envelope["status"], envelope["delayTime"], envelope["workerId"]) == ("COMPLETED", 250, "worker-1")
    assert envelope["output"] == {
        "images": [base64.b64encode(b"Make it sunset").decode()],
        "seed": 1337,
        "final_prompts": ["Make it sunset"],
        "rewritten_log": [],
    }


def test_absent_fields_get_the_documented_defaults(app: Harness) -> None:
    app.run(image=PICTURE, prompt="x")
    job = app.editor.jobs[0]
    assert job.sampling == Sampling(seed=42, num_inference_steps=4, true_cfg_scale=1.0, negative_prompt=" ")
    assert job.output == OutputFormat("png")
    assert job.size.final == Size(256, 256)
    assert job.prompt == "x"


def test_null_means_absent(app: Harness) -> None:
    fields = ("images", "azimuth", "elevation", "distance", "seed", "num_inference_steps", "guidance_scale")
    nulls = dict.fromkeys((*fields, "rewrite_prompt", "width", "height", "negative_prompt", "output_format"))
    assert app.run(image=PICTURE, prompt="x", **nulls).status_code == 200
    assert app.editor.jobs[0].prompt == "x"
    assert app.editor.jobs[0].sampling == Sampling()


def test_all_fields_reach_the_editor(app: Harness) -> None:
    app.run(
        image=PICTURE,
        prompt="x",
        azimuth=271,
        distance=1.7,
        seed=7,
        num_inference_steps=6,
        guidance_scale=1.2,
        negative_prompt="blurry",
        width=320,
        height=200,
        output_format="JPG",
        output_quality=80,
    )
    job = app.editor.jobs[0]
    assert job.prompt == f"{CameraPose(270, 0, 1.8).tokens} x"
    assert job.sampling == Sampling(7, 6, 1.2, "blurry")
    assert (job.size.made, job.size.final) == (Size(320, 208), Size(320, 200))
    assert job.output == OutputFormat("jpeg", 80)


def test_true_cfg_scale_wins(app: Harness) -> None:
    app.run(image=PICTURE, prompt="x", guidance_scale=9.0, true_cfg_scale=2.0)
    assert app.editor.jobs[0].sampling.true_cfg_scale == 2.0


def test_pictures_and_prompts_of_one_length_are_a_batch(app: Harness) -> None:
    envelope = app.run(images=[PICTURE, WIDE], prompt=["first", "second"], azimuth=90, seed=3).json()
    tokens = CameraPose(90, 0, 1.0).tokens
    assert envelope["output"]["final_prompts"] == [f"{tokens} first", f"{tokens} second"]
    assert [len(pictures) for pictures in app.shared] == [1, 1]
    assert [job.sampling.seed for job in app.editor.jobs] == [3, 3]
    assert sorted((job.size.final.width, job.size.final.height) for job in app.editor.jobs) == [(256, 256), (320, 224)]
    assert {job.request_id for job in app.editor.jobs} == {f"{envelope['id']}/0", f"{envelope['id']}/1"}


def test_several_pictures_with_one_prompt_are_references_of_one_edit(app: Harness) -> None:
    app.run(image=WIDE, images=[PICTURE, PICTURE], prompt="style of picture 2")
    assert [len(pictures) for pictures in app.shared] == [3]
    # `image` comes first, and the first picture gives the aspect.
    assert app.shared[0][0].vae_pixels.shape == (224, 320, 3)
    assert app.editor.jobs[0].size.final == Size(320, 224)


def test_a_camera_needs_no_prompt(app: Harness) -> None:
    envelope = app.run(image=PICTURE, azimuth=0).json()
    assert envelope["output"]["final_prompts"] == ["<sks> front view eye-level shot medium shot"]


def test_rewriting_is_told(app: Harness) -> None:
    envelope = app.run(image=PICTURE, prompt="make it better", rewrite_prompt=True, elevation=30).json()
    assert envelope["output"]["rewritten_log"] == [
        {"prompt": "make it better", "rewritten": "a precise wish", "reason": None}
    ]
    assert envelope["output"]["final_prompts"] == ["<sks> front view elevated shot medium shot a precise wish"]


def test_a_failed_rewriting_is_told(app: Harness) -> None:
    app.rewriter.problem = ServiceUnavailable("gone")
    envelope = app.run(image=PICTURE, prompt="make it better", rewrite_prompt=True).json()
    reason = "the rewriter is not available: gone"
    assert envelope["output"]["rewritten_log"] == [{"prompt": "make it better", "rewritten": None, "reason": reason}]


def test_a_failed_edit_is_a_failed_job(app: Harness) -> None:
    app.editor.problem = EditFailed("The edit failed inside the model.")
    response = app.run(image=PICTURE, prompt="x")
    assert response.status_code == 200
    envelope = response.json()
    assert (envelope["status"], envelope["error"]) == ("FAILED", "The edit failed inside the model.")
    assert envelope.keys() == {"id", "status", "delayTime", "executionTime", "workerId", "error"}


@pytest.mark.parametrize(
    ("problem", "status"),
    [(Overloaded("full"), 429), (ServiceUnavailable("gone"), 503), (InvalidInput("too long", "prompt"), 400)],
)
def test_a_job_that_was_not_taken_is_an_http_error(app: Harness, problem: ServiceError, status: int) -> None:
    app.editor.problem = problem
    response = app.run(image=PICTURE, prompt="x")
    assert response.status_code == status
    assert response.json() == {"error": problem.message}


def test_an_unexpected_error_tells_nothing_of_itself(app: Harness) -> None:
    app.editor.problem = RuntimeError("secret detail")
    response = app.run(image=PICTURE, prompt="x")
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json().keys() == {"error"}


PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "no picture": ({"prompt": "x"}, "No picture: give input.image, or input.images, in base64."),
    "junk in base64": ({"image": "@@@@", "prompt": "x"}, "input.image holds '@', which is not base64."),
    "not a picture": ({"image": "aGVsbG8=", "prompt": "x"}, "input.image is not a picture."),
    "the third of several": (
        {"images": [PICTURE, PICTURE, "aGVsbG8="], "prompt": "x"},
        "input.images[2] is not a picture.",
    ),
    "five references": ({"images": [PICTURE] * 5, "prompt": "x"}, "5 pictures for one prompt; at most 4"),
    "lengths differ": (
        {"images": [PICTURE] * 2, "prompt": ["x"]},
        "a list of 1 for 2 pictures: the lengths must match",
    ),
    "17 edits": ({"images": [PICTURE] * 17, "prompt": ["x"] * 17}, "holds 17 edits; at most 16"),
    "empty prompt": ({"image": PICTURE, "prompt": ""}, "input.prompt is empty: give an instruction, or a camera pose"),
    "no prompt": ({"image": PICTURE}, "input.prompt is empty"),
    "blank prompt in a batch": (
        {"images": [PICTURE] * 2, "prompt": ["x", " "]},
        "input.prompt[1] is empty",
    ),
    "long prompt": ({"image": PICTURE, "prompt": "x" * 20_000}, "input.prompt has 20000 characters; at most 4000"),
    "long negative prompt": (
        {"image": PICTURE, "prompt": "x", "negative_prompt": "x" * 20_000},
        "input.negative_prompt has 20000 characters",
    ),
    "prompt is a number": (
        {"image": PICTURE, "prompt": 5},
        "input.prompt must be a string or a list of strings, got 5.",
    ),
    "steps 0": ({"num_inference_steps": 0}, "input.num_inference_steps must be between 1 and 100, got 0."),
    "steps -1": ({"num_inference_steps": -1}, "input.num_inference_steps must be between 1 and 100, got -1."),
    "steps 1000": ({"num_inference_steps": 1000}, "input.num_inference_steps must be between 1 and 100, got 1000."),
    "steps four": ({"num_inference_steps": "four"}, "input.num_inference_steps must be a whole number, got 'four'."),
    "steps 4.5": ({"num_inference_steps": 4.5}, "input.num_inference_steps must be a whole number, got 4.5."),
    "steps true": ({"num_inference_steps": True}, "input.num_inference_steps must be a whole number, got True."),
    "guidance -1": ({"guidance_scale": -1}, "input.guidance_scale must be between 0.0 and 20.0, got -1.0."),
    "cfg 21": ({"true_cfg_scale": 21}, "input.true_cfg_scale must be between 0.0 and 20.0, got 21.0."),
    "width 10": ({"width": 10}, "input.width must be between 64 and 2048, got 10."),
    "width 100000": ({"width": 100_000}, "input.width must be between 64 and 2048, got 100000."),
    "height follows": (
        {"image": to_base64(photograph("coffee", 60, 300)), "width": 1000},
        "input.height would be 5000",
    ),
    "seed -1": ({"seed": -1}, "input.seed must be between 0 and"),
    "azimuth word": ({"azimuth": "left"}, "input.azimuth must be a finite number, got 'left'."),
    "rewrite word": ({"rewrite_prompt": "yes"}, "input.rewrite_prompt must be true or false, got 'yes'."),
    "format": ({"output_format": "gif"}, "input.output_format must be png, jpeg or webp, got 'gif'."),
    "quality": ({"output_quality": 0}, "input.output_quality must be between 1 and 100, got 0."),
    "unknown field": ({"azimut": 45}, "Unknown field 'input.azimut'. Did you mean 'azimuth'?"),
    "quite unknown field": ({"zzz": 45}, "Unknown field 'input.zzz'. Known fields: image, images, prompt,"),
}


@pytest.mark.parametrize(("fields", "message"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_bad_input_names_the_field_and_the_fix(app: Harness, fields: dict[str, Any], message: str) -> None:
    if "image" not in fields and "images" not in fields and fields.keys() != {"prompt"}:
        fields = {"image": PICTURE, "prompt": "x", **fields}
    elif "width" in fields:
        fields = {"prompt": "x", **fields}
    assert message in app.refusal(**fields)
    assert app.editor.jobs == []
    assert app.run(image=PICTURE, prompt="the next good one").status_code == 200


BODIES = {
    "not JSON": (b"image=1", "The body is not valid JSON. Send one JSON object."),
    "NaN": (
        b'{"input": {"image": "x", "guidance_scale": NaN}}',
        "input.guidance_scale must be a finite number, got nan.",
    ),
    "infinity": (b'{"input": {"image": "x", "seed": 1e999}}', "input.seed must be a whole number, got inf."),
    "a list": (b"[1]", "The body must be a JSON object"),
    "input missing": (b"{}", "input is required."),
    "input null": (b'{"input": null}', "input must be a JSON object"),
    "input a list": (b'{"input": []}', "input must be a JSON object"),
    "a webhook": (b'{"input": {}, "webhook": "http://x"}', "Unknown field 'webhook'."),
    "empty": (b"", "The body is required."),
    "not UTF-8": (b'{"input": "\xff"}', "The body is not valid JSON"),
    "nested": (b"[" * 100_000, "The body is not valid JSON"),
}


@pytest.mark.parametrize(("body", "message"), BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize("headers", [{"Content-Type": "application/json"}, {}], ids=["typed", "untyped"])
def test_bad_bodies_are_told(app: Harness, body: bytes, message: str, headers: dict[str, str]) -> None:
    response = app.client.post("/runsync", content=body, headers=headers)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]


def test_a_body_without_content_type_is_json(app: Harness) -> None:
    body = b'{"input": {"image": "%s", "prompt": "x"}}' % PICTURE.encode()
    assert app.client.post("/runsync", content=body).status_code == 200


def test_bare_line_breaks_in_base64_are_read(app: Harness) -> None:
    wrapped = base64.encodebytes(base64.b64decode(PICTURE))
    body = b'{"input": {"image": "%s", "prompt": "x"}}' % wrapped
    assert wrapped.count(b"\n") > 10
    assert app.client.post("/runsync", content=body).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_above_the_limit_is_refused(app: Harness, chunked: bool) -> None:
    body = b'{"input": {"image": "%s"}}' % (b"A" * (20 * 2**20))
    response = app.client.post("/runsync", content=iter([body]) if chunked else body)
    assert response.status_code == 413
    assert "larger than the 20971520 bytes" in response.json()["error"]


@pytest.mark.parametrize(
    "call",
    [
        lambda client: (client.get("/nope"), 404),
        lambda client: (client.get("/runsync"), 405),
        lambda client: (client.post("/v2/x/health"), 405),
    ],
)
def test_wrong_routes_point_to_the_docs(app: Harness, call: Callable[[TestClient], tuple[Response, int]]) -> None:
    response, status = call(app.client)
    assert response.status_code == status
    assert "/docs" in response.json()["error"]


def test_health_counts_jobs_and_workers(app: Harness) -> None:
    app.run(image=PICTURE, prompt="x")
    app.editor.problem = EditFailed("x")
    app.run(image=PICTURE, prompt="x")
    for path in ("/health", "/v2/any/health"):
        assert app.client.get(path).json() == {
            "jobs": {"completed": 1, "failed": 1, "inProgress": 0, "inQueue": 0, "retried": 0},
            "workers": {"idle": 1, "ready": 1},
        }


def test_the_docs_show_the_contract(app: Harness) -> None:
    assert app.client.get("/docs").status_code == 200
    schemas = app.client.get("/openapi.json").json()["components"]["schemas"]
    assert {"image", "images", "prompt", "azimuth", "rewrite_prompt"} <= schemas["RunPodInput"]["properties"].keys()
