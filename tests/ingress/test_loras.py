"""Adapters by name in both dialects: which a request may name, what is listed, and what a repeat compares."""

from collections.abc import Callable
from typing import Any

import pytest
from httpx2 import Response

from serve_app.config import AppSettings, CameraWords, LoraSettings, WeightsSource
from serve_app.edits.request import LoraUse
from tests.ingress.openai_harness import DATA_URL, PNG, Harness, error_of, harness

STYLE = LoraSettings(
    name="woodcut",
    source=WeightsSource(path="someone/woodcut", revision="1234"),
    file="woodcut.safetensors",
    apply="request",
    weight=0.8,
    max_weight=1.5,
    licence="Apache-2.0",
    trigger_words=("woodcut style",),
)
ANGLES = STYLE.model_copy(update={"name": "angles", "apply": "camera", "source": WeightsSource(path="/srv/weights")})
OTHERS = tuple(STYLE.model_copy(update={"name": f"other-{number}"}) for number in range(4))


@pytest.fixture
def app(tiny_settings: AppSettings) -> Harness:
    fused = tiny_settings.editor.loras[:1]
    editor = tiny_settings.editor.model_copy(update={"loras": (*fused, ANGLES, STYLE, *OTHERS)})
    return harness(tiny_settings.model_copy(update={"editor": editor}))


def used(app: Harness) -> tuple[LoraUse, ...]:
    return app.editor.requests[-1].loras


@pytest.mark.parametrize("encoding", ["json", "form"])
def test_a_request_names_adapters(app: Harness, encoding: str) -> None:
    loras = [{"name": "woodcut", "weight": -1.25}, {"name": "angles"}]
    assert app.edit(encoding, loras=loras).status_code == 200
    assert used(app) == (LoraUse("woodcut", -1.25), LoraUse("angles", 0.8))


def test_runpods_input_names_adapters(app: Harness) -> None:
    fields = {"image": DATA_URL, "prompt": "x", "loras": [{"name": "woodcut"}]}
    assert app.client.post("/runsync", json={"input": fields}).status_code == 200
    (job,) = app.jobs.specs.values()
    assert job.edits[0].loras == (LoraUse("woodcut", 0.8),)


NAME, WEIGHT = "loras[][name]", "loras[][weight]"
"""As OpenAI's Python client names the parts of a form."""

PARTS: list[tuple[list[tuple[str, str]], tuple[LoraUse, ...]]] = [
    ([(NAME, "woodcut")], (LoraUse("woodcut", 0.8),)),
    ([(NAME, "woodcut"), (WEIGHT, "0.5")], (LoraUse("woodcut", 0.5),)),
    (
        [(NAME, "woodcut"), (NAME, "angles"), (WEIGHT, "0.5"), (WEIGHT, "1")],
        (LoraUse("woodcut", 0.5), LoraUse("angles", 1.0)),
    ),
    ([(NAME, "woodcut"), (NAME, "angles")], (LoraUse("woodcut", 0.8), LoraUse("angles", 0.8))),
]


@pytest.mark.parametrize(("parts", "uses"), PARTS)
def test_a_form_may_hold_adapters_in_parts(
    app: Harness, parts: list[tuple[str, str]], uses: tuple[LoraUse, ...]
) -> None:
    assert app.form(("image", PNG), ("prompt", "x"), *parts).status_code == 200
    assert used(app) == uses


@pytest.mark.parametrize(
    ("parts", "field", "message"),
    [
        ([(NAME, "woodcut"), (NAME, "angles"), (WEIGHT, "1")], "loras", "whose weight is missing"),
        ([(WEIGHT, "1")], "loras", "whose weight is missing"),
        ([(NAME, "woodcut"), (WEIGHT, "x")], "loras[0].weight", "loras[0].weight must be a finite number, got 'x'"),
        ([(NAME, "")], "loras[0].name", "loras[0].name is required."),
        ([(NAME, "wodcut")], "loras[0].name", "Did you mean 'woodcut'?"),
        ([(NAME, "woodcut"), ("loras", '[{"name": "angles"}]')], "loras", "loras comes more than once"),
        ([("loras[][path]", "x")], "loras[][path]", "Unknown field"),
    ],
)
def test_what_is_wrong_with_such_parts(app: Harness, parts: list[tuple[str, str]], field: str, message: str) -> None:
    problem = error_of(app.form(("image", PNG), ("prompt", "x"), *parts), 400)
    assert message in problem["message"]
    assert problem["param"] == field


def test_model_may_name_an_adapter(app: Harness) -> None:
    assert app.edit("form", model="woodcut").status_code == 200
    assert used(app) == (LoraUse("woodcut", 0.8),)
    assert app.edit("json", model="woodcut", loras=[{"name": "woodcut", "weight": 0.5}]).status_code == 200
    assert used(app) == (LoraUse("woodcut", 0.5),)
    assert "is not served here" in error_of(app.edit("json", model="lightning"), 400)["message"]


PROBLEMS: dict[str, tuple[object, str, str]] = {
    "unknown": (
        [{"name": "wodcut"}],
        "loras[0].name",
        "loras[0].name: there is no adapter 'wodcut' here. Did you mean 'woodcut'?",
    ),
    "quite unknown": (
        [{"name": "zzz"}],
        "loras[0].name",
        "there is no adapter 'zzz' here. GET /v1/adapters lists them: angles, woodcut, other-0,",
    ),
    "fused": ([{"name": "lightning"}], "loras[0].name", "'lightning' is part of the model, for all edits."),
    "weight too high": (
        [{"name": "woodcut", "weight": 1.6}],
        "loras[0].weight",
        "loras[0].weight must be between -2.0 and 1.5, got 1.6.",
    ),
    "weight in words": (
        [{"name": "woodcut", "weight": "much"}],
        "loras[0].weight",
        "loras[0].weight must be a finite number, got 'much'.",
    ),
    "too many": (
        [{"name": lora.name} for lora in (STYLE, *OTHERS)],
        "loras",
        "loras holds 5 adapters; at most 4 go into one edit.",
    ),
    "twice": (
        [{"name": "woodcut"}] * 2,
        "loras[1].name",
        "loras[1].name: 'woodcut' is listed twice. List each adapter once.",
    ),
    "no name": ([{"weight": 1}], "loras[0].name", "loras[0].name is required."),
    "another server's names": (
        [{"path": "x", "scale": 1}],
        "loras[0].path",
        "Unknown field 'loras[0].path'. Did you mean 'name'?",
    ),
    "a name": ("woodcut", "loras", "loras must be a list like"),
}


@pytest.mark.parametrize(("loras", "field", "message"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_what_is_wrong_names_the_field(app: Harness, loras: Any, field: str, message: str) -> None:
    problem = error_of(app.edit("json", loras=loras), 400)
    assert message in problem["message"]
    assert problem["param"] == field


def test_adapters_are_listed_as_models(app: Harness) -> None:
    models = {each["id"]: each.get("parent") for each in app.client.get("/v1/models").json()["data"]}
    base = app.settings.served_model_names[0]
    assert models.keys() == {*app.settings.served_model_names, "angles", "woodcut", *(lora.name for lora in OTHERS)}
    assert models["woodcut"] == base
    assert models[base] is None
    assert app.client.get("/v1/models/woodcut").json()["parent"] == base


def test_adapters_are_described(app: Harness) -> None:
    listed = {each["name"]: each for each in app.client.get("/v1/adapters").json()["data"]}
    assert listed["woodcut"] == {
        "name": "woodcut",
        "object": "adapter",
        "apply": "request",
        "weight": 0.8,
        "min_weight": -2.0,
        "max_weight": 1.5,
        "trigger_words": ["woodcut style"],
        "licence": "Apache-2.0",
        "source": "someone/woodcut",
        "revision": "1234",
        "file": "woodcut.safetensors",
    }
    assert listed["angles"]["source"] == "weights", "the server's paths are its own business"
    assert listed["lightning"]["apply"] == "fused"


def test_a_repeat_with_other_adapters_is_another_request(app: Harness) -> None:
    headers = {"Idempotency-Key": "one"}
    first = {"image": DATA_URL, "prompt": "x", "loras": [{"name": "woodcut"}]}
    for path, wrap in (("/runsync", lambda fields: {"input": fields}), ("/v1/images/edits", dict)):
        assert app.client.post(path, json=wrap(first), headers=headers).status_code == 200
        assert app.client.post(path, json=wrap(first), headers=headers).status_code == 200
        other = {**first, "loras": [{"name": "woodcut", "weight": 0.5}]}
        assert app.client.post(path, json=wrap(other), headers=headers).status_code == 422
        headers = {"Idempotency-Key": "two"}


@pytest.mark.parametrize(("path", "wrap"), [("/runsync", lambda fields: {"input": fields}), ("/v1/images/edits", dict)])
def test_a_repeat_finds_its_job_after_its_adapter_is_gone(
    app: Harness, path: str, wrap: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    def send(headers: dict[str, str], **fields: Any) -> Response:
        body = wrap({"image": DATA_URL, "prompt": "x", "loras": [{"name": "woodcut"}], **fields})
        response: Response = app.client.post(path, json=body, headers=headers)
        return response

    known = {"Idempotency-Key": "one"}
    assert send(known).status_code == 200
    app.backend.reconfigured.loras = ()
    assert send(known).status_code == 200
    assert len(app.jobs.specs) == 1
    for headers, changed in ((known, {"prompt": "y"}), ({"Idempotency-Key": "two"}, {}), ({}, {})):
        refused = send(headers, **changed)
        assert refused.status_code == 400
        assert "no adapter 'woodcut' here" in refused.text


def test_a_new_user_config_counts_at_once(app: Harness) -> None:
    new = STYLE.model_copy(update={"name": "ink", "weight": 0.3})
    app.backend.reconfigured.loras = (new,)
    assert app.edit("json", loras=[{"name": "ink"}]).status_code == 200
    assert used(app) == (LoraUse("ink", 0.3),)
    assert "no adapter 'woodcut' here" in error_of(app.edit("json", loras=[{"name": "woodcut"}]), 400)["message"]
    assert {each["name"] for each in app.client.get("/v1/adapters").json()["data"]} == {"lightning", "ink"}


def test_an_adapters_own_camera_words_reach_the_prompt(app: Harness) -> None:
    words = CameraWords(azimuth={0: "", 45: "Rotate right."}, elevation={0: ""}, distance={1.0: ""})
    app.backend.reconfigured.loras = (ANGLES.model_copy(update={"camera": words}),)
    assert app.edit("json", prompt="a hat", azimuth=45).status_code == 200
    assert app.editor.requests[-1].prompt == "Rotate right. a hat"
    assert app.client.post("/run", json={"input": {"image": DATA_URL, "azimuth": 45}}).status_code == 200
    (job,) = app.jobs.specs.values()
    assert job.edits[0].camera_words == "Rotate right."
    problem = error_of(app.edit("form", azimuth=90), 400)
    assert problem["param"] == "azimuth"
    assert "azimuth 90 is unknown to this server's camera adapter, angles; it knows 0, 45." in problem["message"]
