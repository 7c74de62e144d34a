"""RunPod's dialect without Ray: the routes over a service whose ports answer at once."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from serve_app.config import AppSettings, JobSettings, SqliteStoreSettings
from serve_app.edits.camera import CameraPose
from serve_app.edits.job import Job, JobNews, JobRecord, JobSpec, JobState, Policy
from serve_app.edits.request import EditOutcome, EditResult, OutputFormat, Pictures, Progress, Sampling, SharedPictures
from serve_app.edits.service import EditService
from serve_app.edits.sizes import Size
from serve_app.errors import EditFailed, InvalidInput, Overloaded, ServiceUnavailable
from serve_app.ingress import admission
from serve_app.ingress.admission import fingerprint_of
from serve_app.ingress.app import build_app
from serve_app.ingress.backend import Backend
from serve_app.ingress.limits.job_bodies import JobBodies
from serve_app.ingress.pictures.prepare import Preparer
from serve_app.ingress.runpod.answers import stream, webhook_body
from serve_app.jobs import service
from serve_app.jobs.service import JobService
from serve_app.jobs.store_link import open_store
from tests.fakes import TIMINGS, TOKENS, FakeEditor, FakeRewriter
from tests.ingress.openai_harness import local, shared_decoders
from tests.pictures import photograph, to_base64

PICTURE = to_base64(photograph("astronaut", 64, 64))
WIDE = to_base64(photograph("coffee", 90, 60))


def body(**fields: Any) -> dict[str, Any]:
    return {"input": {"image": PICTURE, "prompt": "x", **fields}}


@dataclass
class Harness:
    """The app over HTTP, and its ports."""

    client: TestClient
    editor: FakeEditor
    rewriter: FakeRewriter
    shared: list[Pictures]

    def hold(self) -> None:
        """Let every edit wait after its pick-up for a release."""
        self.editor.gate = asyncio.Semaphore(0)

    def release(self, number: int = 1) -> None:
        assert self.client.portal is not None
        assert self.editor.gate is not None
        for _ in range(number):
            self.client.portal.call(self.editor.gate.release)

    def start(self, **more: Any) -> str:
        """A job by /run; its id."""
        response = self.client.post("/run", json={**body(), **more})
        assert response.status_code == 200, response.text
        assert response.json() == {"id": response.json()["id"], "status": "IN_QUEUE"}
        return str(response.json()["id"])

    def status(self, job_id: str, wanted: str | None = None) -> dict[str, Any]:
        """The job's envelope, once it has the status wanted."""
        for _ in range(200):
            envelope: dict[str, Any] = self.client.get(f"/v2/any/status/{job_id}").json()
            if wanted in (None, envelope["status"]):
                return envelope
            time.sleep(0.01)
        raise AssertionError(f"never {wanted}: {envelope}")

    def run(self, **fields: Any) -> Response:
        return self.client.post("/v2/any/runsync", json={"input": fields})

    def refusal(self, **fields: Any) -> str:
        response = self.run(**fields)
        assert response.status_code == 400, response.text
        assert response.json().keys() == {"error"}
        return str(response.json()["error"])


WEBHOOKS = "http://127.0.0.1:9999"


@pytest.fixture
def app(tiny_settings: AppSettings, tmp_path: Path) -> Iterator[Harness]:
    with running_app(tiny_settings, tmp_path) as app:
        yield app


@contextmanager
def running_app(
    tiny_settings: AppSettings, tmp_path: Path, cell: str = "u1", webhook_origins: tuple[str, ...] = (WEBHOOKS,)
) -> Iterator[Harness]:
    jobs = JobSettings(
        cell=cell,
        store=SqliteStoreSettings(path=str(tmp_path / "jobs.sqlite3")),
        max_active_jobs=2,
        max_queued_jobs=1,
        webhook_origins=webhook_origins,
        webhook_timeout_s=0.1,
        webhook_gap_s=0,
    )
    settings = tiny_settings.model_copy(update={"jobs": jobs})
    shared: list[Pictures] = []

    def share(pictures: Pictures) -> SharedPictures:
        shared.append(pictures)
        return SharedPictures(pictures)

    async def workers(num_busy: int) -> dict[str, int]:
        return {"idle": 1 - num_busy, "ready": 1}

    editor, rewriter = FakeEditor(), FakeRewriter()
    service = EditService(editor, rewriter)
    runner = JobService(jobs, service, open_store(jobs.store), share, webhook_body)
    backend = Backend(settings, runner, service, share, workers, Preparer(settings, shared_decoders()))
    with local(build_app(backend)) as client:
        assert client.portal is not None
        client.portal.call(runner.start)
        yield Harness(client, editor, rewriter, shared)
        client.portal.call(runner.close)


def test_the_ids_of_jobs_name_their_cell(tiny_settings: AppSettings, tmp_path: Path) -> None:
    with running_app(tiny_settings, tmp_path, "c7") as app:
        assert [app.run(image=PICTURE, prompt="x").json()["id"].rpartition("-")[2], app.start().rpartition("-")[2]] == [
            "c7",
            "c7",
        ]


def test_an_envelope_is_complete(app: Harness) -> None:
    envelope = app.run(image=PICTURE, prompt="Make it sunset", seed=1337).json()
    assert envelope.keys() == {"id", "status", "delayTime", "executionTime", "workerId", "output"}
    assert envelope["id"].startswith("sync-")
    assert envelope["id"].endswith("-u1")
    assert (envelope["status"], envelope["workerId"]) == ("COMPLETED", "worker-1")
    assert all(isinstance(envelope[name], int) and envelope[name] >= 0 for name in ("delayTime", "executionTime"))
    assert envelope["output"] == {
        "images": [base64.b64encode(b"Make it sunset").decode()],
        "seed": 1337,
        "final_prompts": ["Make it sunset"],
        "rewritten_log": [],
    }


def test_absent_fields_get_the_documented_defaults(app: Harness) -> None:
    app.run(image=PICTURE, prompt="x")
    request = app.editor.requests[0]
    assert request.sampling == Sampling(seed=42, num_inference_steps=4, true_cfg_scale=1.0, negative_prompt=" ")
    assert request.output == OutputFormat("png")
    assert request.size.final == Size(256, 256)
    assert request.prompt == "x"


def test_null_means_absent(app: Harness) -> None:
    fields = ("images", "azimuth", "elevation", "distance", "seed", "num_inference_steps", "guidance_scale")
    nulls = dict.fromkeys((*fields, "rewrite_prompt", "width", "height", "negative_prompt", "output_format"))
    assert app.run(image=PICTURE, prompt="x", **nulls).status_code == 200
    assert app.editor.requests[0].prompt == "x"
    assert app.editor.requests[0].sampling == Sampling()


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
    request = app.editor.requests[0]
    assert request.prompt == f"{CameraPose(270, 0, 1.8).tokens} x"
    assert request.sampling == Sampling(7, 6, 1.2, "blurry")
    assert (request.size.made, request.size.final) == (Size(320, 208), Size(320, 200))
    assert request.output == OutputFormat("jpeg", 80)


@pytest.mark.parametrize("size", ["320x200", "320*200"])
def test_a_size_in_either_notation_is_width_and_height(app: Harness, size: str) -> None:
    app.run(image=PICTURE, prompt="x", size=size)
    assert app.editor.requests[0].size.final == Size(320, 200)


def test_an_automatic_size_follows_from_the_picture(app: Harness) -> None:
    app.run(image=PICTURE, prompt="x", size="auto")
    assert app.editor.requests[0].size.final == Size(256, 256)


def test_seed_minus_one_draws_a_seed_and_returns_it(app: Harness) -> None:
    seeds = [app.run(image=PICTURE, prompt="x", seed=-1).json()["output"]["seed"] for _ in range(3)]
    assert [request.sampling.seed for request in app.editor.requests] == seeds
    assert len(set(seeds)) == 3


def test_hints_of_the_public_endpoint_are_accepted(app: Harness) -> None:
    """What @runpod/ai-sdk-provider sends to qwen-image-edit-2511 and, by default, to other models."""
    hints = {"enable_base64_output": False, "enable_sync_mode": False, "enable_safety_checker": True}
    response = app.run(images=[PICTURE], prompt="x", negative_prompt="", output_format="jpeg", **hints)
    envelope = response.json()
    assert envelope["status"] == "COMPLETED"
    assert app.editor.requests[0].output == OutputFormat("jpeg", 95)
    assert envelope["output"]["image_url"] == f"data:image/jpeg;base64,{envelope['output']['images'][0]}"
    later = app.client.get(f"/status/{envelope['id']}").json()
    assert later["output"]["image_url"] == envelope["output"]["image_url"]


def test_the_example_of_the_public_endpoints_documentation(app: Harness) -> None:
    """That of docs.runpod.io/public-endpoints/models/qwen-image-edit-2511, with the picture in place of its address."""
    fields = {"size": "1024*1024", "seed": -1, "output_format": "png"}
    envelope = app.run(prompt="Change the background to a futuristic cityscape", images=[PICTURE], **fields).json()
    assert app.editor.requests[0].size.final == Size(1024, 1024)
    assert envelope["output"]["image_url"].startswith("data:image/png;base64,")


def test_the_example_of_the_older_models_documentation(app: Harness) -> None:
    """Likewise, of qwen-image-edit. @runpod/ai-sdk-provider sends the same fields to models that it does not know."""
    fields = {"negative_prompt": "", "seed": -1, "output_format": "png", "enable_safety_checker": True}
    envelope = app.run(prompt="change the trench coat to light grey", image=PICTURE, **fields).json()
    assert app.editor.requests[0].sampling.negative_prompt == ""
    assert envelope["output"]["image_url"].startswith("data:image/png;base64,")


def test_options_of_the_public_endpoints_client_are_accepted(app: Harness) -> None:
    """@runpod/ai-sdk-provider copies all options that its README documents into the input, also its polling's."""
    options = {"maxPollAttempts": 30, "pollIntervalMillis": 4000}
    assert app.run(image=PICTURE, prompt="x", size="512*512", seed=-1, **options).status_code == 200


def test_true_cfg_scale_wins(app: Harness) -> None:
    app.run(image=PICTURE, prompt="x", guidance_scale=9.0, true_cfg_scale=2.0)
    assert app.editor.requests[0].sampling.true_cfg_scale == 2.0


def test_pictures_and_prompts_of_one_length_are_a_batch(app: Harness) -> None:
    envelope = app.run(images=[PICTURE, WIDE], prompt=["first", "second"], azimuth=90, seed=3).json()
    tokens = CameraPose(90, 0, 1.0).tokens
    assert envelope["output"]["final_prompts"] == [f"{tokens} first", f"{tokens} second"]
    assert [len(pictures) for pictures in app.shared] == [1, 1]
    assert [request.sampling.seed for request in app.editor.requests] == [3, 3]
    sizes = [request.size.final for request in app.editor.requests]
    assert sorted((size.width, size.height) for size in sizes) == [(256, 256), (320, 224)]
    assert {request.request_id for request in app.editor.requests} == {f"{envelope['id']}/0", f"{envelope['id']}/1"}


def test_several_pictures_with_one_prompt_are_references_of_one_edit(app: Harness) -> None:
    app.run(image=WIDE, images=[PICTURE, PICTURE], prompt="style of picture 2")
    assert [len(pictures) for pictures in app.shared] == [3]
    # `image` comes first, and the first picture gives the aspect.
    assert app.shared[0][0].vae_pixels.shape == (224, 320, 3)
    assert app.editor.requests[0].size.final == Size(320, 224)


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
    assert envelope.keys() == {"id", "status", "delayTime", "executionTime", "error"}


def test_whatever_goes_wrong_with_an_accepted_job_is_its_end(app: Harness) -> None:
    app.editor.problem = RuntimeError("secret detail")
    response = app.run(image=PICTURE, prompt="x")
    assert response.status_code == 200
    assert (response.json()["status"], response.json()["error"]) == (
        "FAILED",
        "Internal error; the server's log has the reason.",
    )


def test_what_only_the_editor_can_refuse_is_still_the_clients_fault(app: Harness) -> None:
    app.editor.problem = InvalidInput("The prompt is too long for the model.", "prompt")
    assert app.refusal(image=PICTURE, prompt="x") == "The prompt is too long for the model."
    # No request waits for this job, so only its envelope shows the error.
    assert app.status(app.start(), "FAILED")["error"] == "The prompt is too long for the model."


def test_editors_without_room_are_waited_for(app: Harness) -> None:
    app.editor.problem = Overloaded("full")
    late = app.client.post("/run", json=body()).json()["id"]
    time.sleep(0.1)
    app.editor.problem = None
    assert app.client.get(f"/status-sync/{late}").json()["status"] == "COMPLETED"


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
    "size in words": ({"size": "big"}, "Invalid size format: 'big'. Expected format: 'WIDTHxHEIGHT'"),
    "size too large": ({"size": "64*4096"}, "input.size must have sides between 64 and 2048 pixels, got '64*4096'."),
    "size beside width": ({"size": "64x64", "width": 64}, "input.size cannot be combined with width and height."),
    "another server's name": ({"steps": 4}, "Unknown field 'input.steps'. Did you mean 'num_inference_steps'?"),
    "a hint with a list": ({"enable_sync_mode": [1]}, "input.enable_sync_mode must be a text, a number or a boolean"),
    "loras": ({"loras": [{"path": "x", "scale": 1}]}, "Unknown field 'input.loras[0].path'. Did you mean 'name'?"),
    "seed -2": ({"seed": -2}, "input.seed must be between 0 and"),
    "azimuth word": ({"azimuth": "left"}, "input.azimuth must be a finite number, got 'left'."),
    "rewrite word": ({"rewrite_prompt": "yes"}, "input.rewrite_prompt must be true or false, got 'yes'."),
    "format": ({"output_format": "gif"}, "input.output_format must be png, jpeg or webp, got 'gif'."),
    "quality": ({"output_quality": 0}, "input.output_quality must be between 1 and 100, got 0."),
    "unknown field": ({"azimut": 45}, "Unknown field 'input.azimut'. Did you mean 'azimuth'?"),
    "quite unknown field": (
        {"zzz": 45},
        "Unknown field 'input.zzz'. Known fields: azimuth, distance, elevation,",
    ),
}


@pytest.mark.parametrize(("fields", "message"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_bad_input_names_the_field_and_the_fix(app: Harness, fields: dict[str, Any], message: str) -> None:
    if "image" not in fields and "images" not in fields and fields.keys() != {"prompt"}:
        fields = {"image": PICTURE, "prompt": "x", **fields}
    elif "width" in fields:
        fields = {"prompt": "x", **fields}
    assert message in app.refusal(**fields)
    assert app.editor.requests == []
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
    "an S3 bucket": (
        b'{"input": {}, "s3Config": {"accessId": "x"}}',
        "s3Config is not supported: pictures are answered in base64. Leave it out.",
    ),
    "a policy": (b'{"input": {}, "policy": {"ttI": 1}}', "Unknown field 'policy.ttI'. Did you mean 'ttl'?"),
    "empty": (b"", "The body is required."),
    "not UTF-8": (b'{"input": "\xff"}', "The body is not valid JSON"),
    "nested": (b"[" * 100_000, "The body is nested more than 32 levels deep"),
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


def test_a_job_goes_on_when_its_wait_is_over(app: Harness) -> None:
    app.hold()
    answer = app.client.post("/runsync?wait=1000", json=body()).json()
    assert answer.keys() == {"id", "status", "delayTime"}
    assert answer["status"] == "IN_PROGRESS"
    app.release()
    assert app.status(answer["id"], "COMPLETED")["output"]["images"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_new_jobs_pictures_are_read_only_if_they_cannot_be_rendered_at_once(
    app: Harness, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    reads: list[str] = []
    read = JobService.read

    async def noted(self: JobService, job_id: str) -> Job:
        reads.append(job_id)
        return await read(self, job_id)

    monkeypatch.setattr(JobService, "read", noted)
    monkeypatch.setattr(JobBodies, "renders_at_once", at_once)
    envelope = app.run(images=[PICTURE, PICTURE], prompt=["x", "y"]).json()
    assert envelope["status"] == "COMPLETED"
    assert len(envelope["output"]["images"]) == 2
    assert reads == ([] if at_once else [envelope["id"]])
    assert app.status(envelope["id"]) == envelope


def test_a_job_by_run_is_asked_for_later(app: Harness) -> None:
    job_id = app.start()
    assert not job_id.startswith("sync-")
    done = app.client.get(f"/v2/any/status-sync/{job_id}?wait=5000").json()
    assert (done["id"], done["status"]) == (job_id, "COMPLETED")
    assert app.client.post(f"/status/{job_id}").json() == app.client.get(f"/status/{job_id}").json() == done


@pytest.mark.timeout(120)
def test_status_sync_waits_until_the_end_and_no_longer(app: Harness) -> None:
    app.hold()
    job_id = app.start()
    app.status(job_id, "IN_PROGRESS")
    threading.Timer(0.3, app.release).start()
    assert app.client.get(f"/status-sync/{job_id}?wait=300000").json()["status"] == "COMPLETED"


@pytest.mark.parametrize("path", ["/status/x", "/status-sync/x", "/stream/x"])
def test_an_unknown_job_is_not_found(app: Harness, path: str) -> None:
    response = app.client.get(path)
    assert response.status_code == 404
    assert response.json() == {"error": "There is no job x, or it is no longer kept."}


@pytest.mark.parametrize("path", ["/cancel/x", "/retry/x", "/status/x"])
def test_an_unknown_job_cannot_be_steered(app: Harness, path: str) -> None:
    assert app.client.post(path).status_code == 404


@pytest.mark.parametrize("query", ["wait=999", "wait=300001", "wait=soon"])
def test_a_wait_out_of_bounds_is_refused(app: Harness, query: str) -> None:
    response = app.client.post(f"/runsync?{query}", json=body())
    assert response.status_code == 400
    assert response.json()["error"].startswith("wait ")


def test_each_picture_of_a_batch_is_streamed_once_it_is_done(app: Harness) -> None:
    app.hold()
    job_id = app.start(input={"images": [PICTURE] * 3, "prompt": ["a", "b", "c"]})
    app.status(job_id, "IN_PROGRESS")
    seen = []
    for index in range(3):
        app.release()
        news = app.client.get(f"/stream/{job_id}").json()
        assert news.keys() == {"status", "stream"}
        pictures = [item["output"] for item in news["stream"] if item["output"]["type"] == "image"]
        assert [picture["final_prompt"] for picture in pictures] == ["abc"[index]]
        assert pictures[0]["index"] == index
        seen += pictures
    assert app.status(job_id, "COMPLETED")["output"]["images"] == [picture["image"] for picture in seen]
    assert app.client.get(f"/stream/{job_id}").json() == {"status": "COMPLETED", "stream": []}


def test_a_stream_sends_steps_once_in_a_while(app: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    app.hold()
    job_id = app.start()
    app.status(job_id, "IN_PROGRESS")
    now, pauses = 1000.0, list[float]()

    async def pause(changed: asyncio.Event | None, until: float) -> None:
        nonlocal now
        pauses.append(until - now)
        now = until

    with monkeypatch.context() as patches:
        patches.setattr(service, "_now", lambda: now)
        patches.setattr(service, "_pause", pause)
        news = app.client.get(f"/stream/{job_id}").json()
    assert pauses == [service.PROGRESS_INTERVAL_S]  # It would wait eight seconds for a picture.
    step = {"type": "progress", "index": 0, "step": 0, "num_steps": 4, "paused": False}
    assert news == {"status": "IN_PROGRESS", "stream": [{"output": step}]}
    # Returned once: the next call waits for something else.
    assert app.client.get(f"/stream/{job_id}?wait=100").json() == {"status": "IN_PROGRESS", "stream": []}
    app.release()


def test_a_stream_says_which_picture_is_paused() -> None:
    news = JobNews(JobState.IN_PROGRESS, {}, {0: Progress(2, 4), 1: Progress(3, 40, is_paused=True)})
    steps = [item["output"] for item in stream(news).model_dump()["stream"]]
    assert [(step["index"], step["step"], step["paused"]) for step in steps] == [(0, 2, False), (1, 3, True)]


def test_a_stream_has_the_previews_that_a_job_asks_for() -> None:
    news = JobNews(JobState.IN_PROGRESS, {}, {0: Progress(2, 4, b"png"), 1: Progress(2, 4)})
    steps = [item["output"] for item in stream(news).model_dump(exclude_none=True)["stream"]]
    assert [step.get("preview") for step in steps] == ["cG5n", None]


@pytest.mark.parametrize(("requested", "drawn"), [(None, 0), (0, 0), (3, 3)])
def test_partial_images_is_the_number_of_previews(app: Harness, requested: int | None, drawn: int) -> None:
    app.run(**body(partial_images=requested)["input"])
    assert [request.num_previews for request in app.editor.requests] == [drawn]


@pytest.mark.parametrize("requested", [-1, 4, "2", True])
def test_partial_images_is_checked(app: Harness, requested: object) -> None:
    assert app.refusal(**body(partial_images=requested)["input"]).startswith("input.partial_images must be ")


def test_a_streamed_picture_has_its_timings() -> None:
    outcome = EditOutcome(EditResult(b"png", "image/png", TIMINGS, TOKENS), "x", "x", 42, None)
    (item,) = stream(JobNews(JobState.COMPLETED, {0: outcome}, {})).model_dump()["stream"]
    assert item["output"]["timings"] == asdict(TIMINGS)


def test_a_running_job_is_cancelled(app: Harness) -> None:
    app.hold()
    job_id = app.start()
    app.status(job_id, "IN_PROGRESS")
    for _ in range(3):
        response = app.client.post(f"/v2/any/cancel/{job_id}")
        assert (response.status_code, response.json()) == (200, {"id": job_id, "status": "CANCELLED"})
    assert app.editor.num_cancelled == 1
    assert app.status(job_id).keys() == {"id", "status", "delayTime", "executionTime"}


def test_a_queued_job_is_cancelled_and_never_runs(app: Harness) -> None:
    app.hold()
    running = [app.start() for _ in range(2)]
    queued = app.start()
    for job_id in running:
        app.status(job_id, "IN_PROGRESS")
    for _ in range(3):
        assert app.client.post(f"/cancel/{queued}", json={}).json() == {"id": queued, "status": "CANCELLED"}
    app.release(2)
    for job_id in running:
        app.status(job_id, "COMPLETED")
    assert len(app.editor.requests) == 2


def test_a_finished_job_stays_as_it_is(app: Harness) -> None:
    job_id = app.start()
    done = app.status(job_id, "COMPLETED")
    for _ in range(3):
        assert app.client.post(f"/cancel/{job_id}").json() == {"id": job_id, "status": "COMPLETED"}
    assert app.status(job_id) == done


def test_purging_cancels_what_waits_and_nothing_else(app: Harness) -> None:
    app.hold()
    running = [app.start() for _ in range(2)]
    queued = app.start()
    for job_id in running:
        app.status(job_id, "IN_PROGRESS")
    assert app.client.get("/health").json()["jobs"] == {
        "completed": 0,
        "failed": 0,
        "inProgress": 2,
        "inQueue": 1,
        "retried": 0,
    }
    assert app.client.post("/purge-queue").json() == {"removed": 1, "status": "completed"}
    assert app.client.post("/purge-queue").json() == {"removed": 0, "status": "completed"}
    assert app.status(queued)["status"] == "CANCELLED"
    app.release(2)
    for job_id in running:
        app.status(job_id, "COMPLETED")


def test_a_full_queue_is_told_at_once(app: Harness) -> None:
    app.hold()
    accepted = [app.start() for _ in range(3)]
    for path in ("/run", "/runsync"):
        response = app.client.post(path, json=body())
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) > 0
        assert response.json() == {"error": "The queue of jobs is full; try again later."}
    app.release(3)
    for job_id in accepted:
        app.status(job_id, "COMPLETED")


def test_a_failed_job_is_retried_under_its_id(app: Harness) -> None:
    app.editor.problem = EditFailed("bad luck")
    job_id = app.start()
    app.status(job_id, "FAILED")
    app.editor.problem = None
    assert app.client.post(f"/v2/any/retry/{job_id}").json() == {"id": job_id, "status": "IN_QUEUE"}
    app.status(job_id, "COMPLETED")
    assert app.client.get("/health").json()["jobs"]["retried"] == 1
    refused = app.client.post(f"/retry/{job_id}")
    assert refused.status_code == 400
    assert refused.json() == {"error": "Only a FAILED or TIMED_OUT job can be retried; this one is COMPLETED."}


def test_execution_has_a_timeout(app: Harness) -> None:
    app.hold()
    job_id = app.start(policy={"executionTimeout": 100})
    envelope = app.status(job_id, "FAILED")
    assert envelope["error"] == "executionTimeout exceeded"
    assert 90 <= envelope["executionTime"] < 2000
    assert app.editor.num_cancelled == 1


def test_a_job_that_is_not_picked_up_in_time_is_timed_out(app: Harness) -> None:
    app.hold()
    running = [app.start() for _ in range(2)]
    job_id = app.start(policy={"ttl": 100})
    envelope = app.status(job_id, "TIMED_OUT")
    assert envelope["error"] == "The job was not picked up within its ttl."
    assert app.client.post(f"/retry/{job_id}").json()["status"] == "IN_QUEUE"
    app.release(3)
    for each in (*running, job_id):
        app.status(each, "COMPLETED")


def test_low_priority_goes_behind(app: Harness) -> None:
    app.hold()
    first = [app.start() for _ in range(2)]
    for job_id in first:
        app.status(job_id, "IN_PROGRESS")
    low = app.start(policy={"lowPriority": True})
    assert app.editor.gate is not None
    app.release(1)
    app.status(first[0], "COMPLETED")
    app.status(low, "IN_PROGRESS")
    assert app.editor.requests[-1].low_priority
    app.release(2)
    app.status(low, "COMPLETED")


@pytest.mark.parametrize("policy", [{"ttl": 0}, {"executionTimeout": -1}, {"executionTimeout": 1e15}])
def test_a_policy_out_of_bounds_is_refused(app: Harness, policy: dict[str, Any]) -> None:
    response = app.client.post("/run", json={**body(), "policy": policy})
    assert response.status_code == 400
    assert "must be between 1 and" in response.json()["error"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "https://127.0.0.1:9999", "ftp://127.0.0.1:9999", "x"])
def test_webhooks_go_where_the_operator_allows(app: Harness, url: str) -> None:
    response = app.client.post("/run", json={**body(), "webhook": url})
    assert response.status_code == 400
    assert response.json()["error"].startswith("webhook is a URL that this server may not call.")


def test_a_webhook_that_nobody_answers_harms_nobody(app: Harness) -> None:
    app.status(app.start(webhook=f"{WEBHOOKS}/hook"), "COMPLETED")


def test_the_same_key_is_the_same_job(app: Harness) -> None:
    headers = {"Idempotency-Key": "k-1"}
    first = app.client.post("/runsync", json=body(), headers=headers).json()
    # In another spelling, by another route: still the same request.
    again = {"input": {"prompt": "x", "image": PICTURE, "seed": None}}
    assert app.client.post("/run", json=again, headers=headers).json()["id"] == first["id"]
    assert app.client.post("/v2/any/runsync", json=again, headers=headers).json() == first
    assert len(app.editor.requests) == 1
    other = app.client.post("/runsync", json=body(seed=1), headers=headers)
    assert other.status_code == 422
    assert "Idempotency-Key" in other.json()["error"]


def wrapped(text: str, width: int) -> str:
    return "\n".join(text[start : start + width] for start in range(0, len(text), width))


@pytest.mark.parametrize(
    "picture",
    [wrapped(PICTURE, 76), wrapped(PICTURE, 64) + "\n", f"data:image/png;base64,{PICTURE}"],
    ids=["76 columns", "64 columns", "data URL"],
)
def test_the_same_picture_in_another_spelling_is_the_same_job(app: Harness, picture: str) -> None:
    headers = {"Idempotency-Key": "k-1"}
    first = app.client.post("/run", json=body(), headers=headers).json()["id"]
    assert app.client.post("/run", json=body(image=picture), headers=headers).json()["id"] == first
    as_list = {"input": {"images": [picture], "prompt": "x"}}
    assert app.client.post("/run", json=as_list, headers=headers).json()["id"] == first
    assert app.client.post("/run", json=body(image=WIDE), headers=headers).status_code == 422


def test_a_repeat_is_answered_in_a_full_queue_and_while_the_service_drains(app: Harness) -> None:
    app.hold()
    headers = {"Idempotency-Key": "k-1"}
    first = app.client.post("/run", json=body(), headers=headers).json()["id"]
    others = [app.start() for _ in range(2)]
    assert app.client.post("/run", json=body()).status_code == 429
    assert app.client.post("/run", json=body(), headers=headers).json()["id"] == first
    assert app.client.post("/run", json=body(), headers={"Idempotency-Key": "k-2"}).status_code == 429
    assert app.client.post("/drain").status_code == 200
    assert app.client.post("/run", json=body(), headers=headers).json()["id"] == first
    refused = app.client.post("/run", json=body(), headers={"Idempotency-Key": "k-2"})
    assert (refused.status_code, "takes no new work" in refused.json()["error"]) == (503, True)
    assert int(refused.headers["retry-after"]) > 0
    app.release(3)
    for job_id in (first, *others):
        app.status(job_id, "COMPLETED")


def test_a_repeat_is_answered_with_the_state_of_its_job(app: Harness) -> None:
    headers = {"Idempotency-Key": "k-1"}
    first = app.client.post("/run", json=body(), headers=headers).json()
    app.status(first["id"], "COMPLETED")
    again = app.client.post("/run", json=body(), headers=headers).json()
    assert again == {"id": first["id"], "status": "COMPLETED"}


def test_a_repeat_finds_its_job_after_its_webhooks_origin_is_gone(tiny_settings: AppSettings, tmp_path: Path) -> None:
    request, headers = {**body(), "webhook": f"{WEBHOOKS}/hook"}, {"Idempotency-Key": "k-1"}
    with running_app(tiny_settings, tmp_path) as app:
        first = app.client.post("/run", json=request, headers=headers).json()["id"]
    with running_app(tiny_settings, tmp_path, webhook_origins=()) as app:
        assert app.client.post("/run", json=request, headers=headers).json()["id"] == first
        assert app.client.post("/run", json=request, headers={"Idempotency-Key": "k-2"}).status_code == 400


def test_pictures_are_hashed_off_the_event_loop(app: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def noted(*args: Any) -> str:
        threads.append(threading.current_thread())
        return fingerprint_of(*args)

    monkeypatch.setattr(admission, "fingerprint_of", noted)
    app.client.post("/run", json=body(), headers={"Idempotency-Key": "k-1"})
    assert app.client.portal is not None
    assert [thread is app.client.portal.call(_current_thread) for thread in threads] == [False]


async def _current_thread() -> threading.Thread:
    return threading.current_thread()


def test_views_share_one_upload(app: Harness) -> None:
    envelope = app.run(image=PICTURE, prompt="x", views="orbit:4", elevation=30, seed=9).json()
    words = [CameraPose(azimuth, 30, 1.0).tokens for azimuth in (0, 90, 180, 270)]
    assert envelope["output"]["final_prompts"] == [f"{each} x" for each in words]
    assert len(app.shared) == 1
    assert {request.sampling.seed for request in app.editor.requests} == {9}


def test_views_may_be_listed(app: Harness) -> None:
    views = [{"azimuth": 90}, {"elevation": -30, "distance": 0.6}]
    envelope = app.run(image=PICTURE, views=views, distance=1.8).json()
    assert envelope["output"]["final_prompts"] == [CameraPose(90, 0, 1.8).tokens, CameraPose(0, -30, 0.6).tokens]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": "orbit:9"}, 'input.views must be a list of camera poses, "orbit" or "orbit:N" with N from 1 to 8,'),
        ({"views": "round"}, "input.views must be a list of camera poses"),
        ({"views": 4}, "input.views must be a list of camera poses"),
        ({"views": []}, "input.views is empty"),
        ({"views": [{}]}, "input.views[0] is empty: give azimuth, elevation or distance."),
        ({"views": [{"azimut": 1}]}, "Unknown field 'input.views[0].azimut'. Did you mean 'azimuth'?"),
        ({"views": [{"azimuth": "left"}]}, "input.views[0].azimuth must be a finite number, got 'left'."),
        ({"views": "orbit", "azimuth": 45}, "input.azimuth cannot be combined with input.views"),
        ({"views": [{"azimuth": 1}] * 17}, "input.views holds 17 edits; at most 16"),
        ({"views": "orbit", "prompt": ["x"], "images": [PICTURE], "image": None}, "input.views needs one prompt"),
    ],
)
def test_bad_views_are_told(app: Harness, fields: dict[str, Any], message: str) -> None:
    assert message in app.refusal(**{"image": PICTURE, "prompt": "x", **fields})


def test_every_answer_has_a_request_id(app: Harness) -> None:
    assert app.client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert app.client.get("/nope").headers["x-request-id"].startswith("req-")
    assert app.client.get("/health", headers={"x-request-id": "a b\\n"}).headers["x-request-id"].startswith("req-")


def test_what_a_webhook_is_told(app: Harness) -> None:
    outcome = EditOutcome(EditResult(b"png", "image/png", TIMINGS, TOKENS), "x", "x", 42, None)
    spec = JobSpec("id-u1", (), (), 42, Policy(), 60.0, f"{WEBHOOKS}/hook", {"prompt": "x"})
    record = JobRecord(JobState.COMPLETED, 1.0, 2.0, 4.5)
    assert json.loads(webhook_body(spec, Job("id-u1", record, 42, (outcome,)))) == {
        "id": "id-u1",
        "status": "COMPLETED",
        "delayTime": 1000,
        "executionTime": 2500,
        "workerId": "",
        "output": {
            "images": [base64.b64encode(b"png").decode()],
            "seed": 42,
            "final_prompts": ["x"],
            "rewritten_log": [],
        },
        "input": {"prompt": "x"},
        "webhook": f"{WEBHOOKS}/hook",
    }
