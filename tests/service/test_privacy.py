"""No client input is in any log: not in Serve's files, not in the workers', not on the console. Every text below that
begins with `planted` is searched for in all of them."""

import json
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.pictures import photograph, to_base64, to_png
from tests.service.conftest import KEY, OPERATOR_KEY, Service
from tests.service.ray_session import exported, session_folder
from tests.service.receiver import Receiver
from tests.waiting import until

PICTURE = to_base64(photograph("astronaut", 96, 64))
SMALL = {"width": 64, "height": 64, "num_inference_steps": 1}
GOOD = {
    "image": PICTURE,
    "prompt": "planted-prompt",
    "negative_prompt": "planted-negative",
    "guidance_scale": 2,
    **SMALL,
}


@pytest.fixture(scope="module")
def guarded(narrow: Service, receiver: Receiver) -> Service:
    """The service after valid and invalid requests of every kind."""
    good_jobs(narrow, receiver)
    refused_jobs(narrow, receiver)
    failing_jobs(narrow, receiver)
    openai_edits(narrow, receiver)
    odd_requests(narrow)
    time.sleep(5)  # Ray copies the workers' lines to the console with a delay.
    return narrow


def send(service: Service, method: str, path: str, expected: int, /, headers: Any = None, **more: Any) -> Any:
    known = {"authorization": f"Bearer {KEY}", "user-agent": "planted-agent", "cookie": "a=planted-cookie"}
    url = f"{service.url}{path}"
    response = requests.request(method, url, headers={**known, **(headers or {})}, timeout=60, **more)
    assert response.status_code == expected, response.text[:500]
    return response.json()


def run(service: Service, fields: dict[str, Any], expected: int = 200, **more: Any) -> Any:
    return send(service, "POST", "/v2/planted-endpoint/runsync", expected, json={"input": fields, **more})


def good_jobs(service: Service, receiver: Receiver) -> None:
    sane = {"x-request-id": "a-sane-id"}
    query = "?api_key=planted-query&prompt=planted-query"
    send(service, "POST", f"/v2/any/runsync{query}", 200, sane, json={"input": GOOD})
    run(service, {**GOOD, "rewrite_prompt": True})
    run(service, GOOD, webhook=f"{receiver.origin}/hook/200?token=planted-hook/200")
    repeated = {"Idempotency-Key": "planted-repeat-key"}
    send(service, "POST", "/run", 200, repeated, json={"input": GOOD})
    send(service, "POST", "/run", 422, repeated, json={"input": {**GOOD, "seed": 9}})


def refused_jobs(service: Service, receiver: Receiver) -> None:
    run(service, {**GOOD, "width": "planted-width"}, 400)
    run(service, {**GOOD, "planted-field": 1}, 400)
    run(service, {**GOOD, "image": "planted-picture"}, 400)
    run(service, {**GOOD, "image": PICTURE[:100] + "plantedpicture"}, 400)
    run(service, {**GOOD, "image": f"{receiver.origin}/planted-path.png?token=planted-token"}, 400)
    run(service, {**GOOD, "image": "https://planted-user:planted-password@example.com/planted.png"}, 400)
    run(service, GOOD, 400, webhook="https://planted-host.example/hook")
    send(service, "POST", "/run", 400, data=b'{"input": {"prompt": "planted-broken')


def failing_jobs(service: Service, receiver: Receiver) -> None:
    endless = {**GOOD, "prompt": "planted-long" + "\U0001f389" * 1900}  # more tokens than fit: the editor finds it
    run(service, endless, 400)
    send(
        service,
        "POST",
        "/v1/images/edits",
        400,
        json={"prompt": endless["prompt"], "image": f"data:image/png;base64,{PICTURE}"},
    )
    slow = {**GOOD, "width": 512, "height": 512, "num_inference_steps": 100}
    assert run(service, slow, policy={"executionTimeout": 1})["status"] == "FAILED"
    run(service, GOOD, webhook=f"{receiver.origin}/hook/500?token=planted-hook/500")
    receiver.bodies("/hook/500?token=planted-hook/500", 3)


def openai_edits(service: Service, receiver: Receiver) -> None:
    path, picture = "/v1/images/edits", to_png(photograph("astronaut", 96, 64))
    form = {"prompt": "planted-openai-prompt", "size": "64x64", "user": "planted-user", "num_inference_steps": "1"}
    file = {"image": ("planted-file-name.png", picture, "image/png")}
    send(service, "POST", f"{path}?key=planted-query", 200, {"x-request-id": "another-sane-id"}, data=form, files=file)
    send(service, "POST", path, 200, {"Idempotency-Key": "planted-openai-key"}, data=form, files=file)
    send(service, "POST", path, 400, data={**form, "url": f"{receiver.origin}/planted-url"})
    send(service, "POST", path, 400, data={**form, "size": "planted-size"}, files=file)
    send(service, "POST", path, 400, json={"prompt": "planted", "image": "data:planted/png;base64,planted"})
    send(service, "GET", "/v1/models/planted-model", 404)
    streamed = requests.post(
        f"{service.url}/v2/planted-endpoint/openai{path}",
        data={**form, "stream": "true", "partial_images": "1"},
        files=file,
        headers={"authorization": KEY},
        timeout=60,
    )
    assert "image_edit.completed" in streamed.text


def odd_requests(service: Service) -> None:
    send(service, "POST", "/run", 401, {"authorization": "Bearer planted-wrong-key"}, json={"input": GOOD})
    send(service, "GET", "/status/planted-job", 404)
    for path in ("/purge-queue", "/undrain"):
        send(service, "POST", path, 200, {"authorization": f"Bearer {OPERATOR_KEY}"})
        send(service, "POST", path, 403)
        send(service, "POST", path, 401, {"authorization": "Bearer planted-wrong-key"})
    send(service, "POST", "/cancel/planted-job?why=planted-query", 404)
    send(service, "POST", "/retry/planted-job", 404)
    send(service, "GET", "/planted-folder/planted-page", 404)
    send(service, "PATCH", "/run?planted-query", 405)
    odd = {"x-request-id": "planted id, not sane", "x-forwarded-for": "planted-address", "referer": "planted-referer"}
    send(service, "GET", "/v2/planted-endpoint/health", 200, odd)


def logs(service: Service) -> dict[Path, str]:
    """The contents of all logs of Ray and Serve, by file."""
    files = [path for path in (session_folder(service) / "logs").rglob("*") if path.is_file()]
    return {path: path.read_text(errors="replace") for path in [*files, service.log_file]}


def records(service: Service, deployment: str) -> list[dict[str, Any]]:
    """The log records of a deployment's replicas."""
    files = (session_folder(service) / "logs" / "serve").glob(f"replica_camera-edit_{deployment}_*.log")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_no_log_contains_client_input(guarded: Service) -> None:
    leaks = [
        f"{path.name}: {line[max(0, at.start() - 150) : at.end() + 50]}"
        for path, text in logs(guarded).items()
        for line in text.splitlines()
        for at in re.finditer("planted|" + re.escape(PICTURE[:40]), line)
    ]
    assert not leaks, "\n".join(leaks[:20])


def test_no_metric_contains_client_input(guarded: Service) -> None:
    assert "planted" not in exported(guarded)


def test_valid_request_ids_are_logged(guarded: Service) -> None:
    texts = logs(guarded)
    for sane in ("a-sane-id", "another-sane-id"):
        assert [path for path, text in texts.items() if sane in text and path.name.startswith("replica_")]
        assert sane in guarded.log


def test_the_request_id_leads_to_the_job_and_to_its_edit(guarded: Service) -> None:
    (taken,) = [
        record["message"]
        for record in records(guarded, "Ingress")
        if record.get("request_id") == "a-sane-id" and record["message"].startswith("job ")
    ]
    match = re.fullmatch(r"job (sync-\S+) taken: num_edits=1 num_picture_sets=1 size=64x64 num_steps=1", taken)
    assert match is not None
    assert [r for r in records(guarded, "Editor") if r["message"].startswith(f"edit {match[1]} done: queue_s=")]
    for deployment, call in (("Jobs", "submit"), ("Editor", "edit")):  # Serve writes a line some time after the answer
        until(partial(_logs_success, guarded, deployment, call))


def _logs_success(service: Service, deployment: str, call: str) -> bool:
    return any(
        record.get("request_id") == "a-sane-id" and record["message"].startswith(f"CALL {call} OK ")
        for record in records(service, deployment)
    )


def test_a_refusal_is_logged_by_its_code_and_without_a_traceback(guarded: Service) -> None:
    failed = [record for record in records(guarded, "Jobs") if record["message"].startswith("Request failed.")]
    assert "Request failed. (not_found)" in [record["message"] for record in failed]
    assert not [record for record in failed if "exc_text" in record]
