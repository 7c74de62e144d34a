"""An edit past its deadline leaves the engine at its next step, in both dialects, streamed or not."""

import time
from typing import Any

import pytest
import requests

from tests.service.conftest import Service
from tests.service.load import PICTURE
from tests.service.test_jobs import ended, start
from tests.service.test_peer_faults import LONG, PNG

ENDLESS: dict[str, Any] = {"image": PICTURE, "prompt": "x", "width": 512, "height": 512, "num_inference_steps": 100}


def check_that_the_edit_left(service: Service, request_id: str) -> None:
    assert service.logged(rf"edit {request_id} (?:expired|cancelled) after [\d.]+ s")
    assert f"edit {request_id} done" not in service.log


@pytest.mark.parametrize("stream", ["false", "true"])
def test_an_openai_edit(service: Service, stream: str) -> None:
    request_id = f"late-{time.time_ns()}"
    fields = {**LONG, "timeout_s": "1", "stream": stream}
    response = requests.post(
        f"{service.url}/v1/images/edits",
        data=fields,
        files={"image": PNG},
        headers={"x-request-id": request_id},
        timeout=120,
    )
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    check_that_the_edit_left(service, request_id)


def test_a_runpod_job(service: Service) -> None:
    job_id = start(service, {**ENDLESS, "timeout_s": 1})
    envelope = ended(service, job_id)
    assert (envelope["status"], envelope["error"]) == ("FAILED", "The request was not done within 1 s (timeout_s).")
    check_that_the_edit_left(service, job_id)


def test_a_runpod_job_that_its_client_waits_for(service: Service) -> None:
    response = service.post({**ENDLESS, "timeout_s": 1})
    assert (response.status_code, response.json()) == (
        504,
        {"error": "The request was not done within 1 s (timeout_s)."},
    )
