"""Jobs over HTTP: states, webhooks, streams and cancellation."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.pictures import alike, photograph, to_base64
from tests.service.conftest import Service
from tests.service.receiver import Receiver
from tests.waiting import until

PICTURE = to_base64(photograph("astronaut", 96, 64))
QUICK = {"image": PICTURE, "prompt": "make it sunset", "width": 64, "height": 64, "num_inference_steps": 1}
LONG = {**QUICK, "width": 512, "height": 512, "num_inference_steps": 100}


def start(service: Service, fields: dict[str, Any] = QUICK, **more: Any) -> str:
    response = requests.post(f"{service.url}/v2/any/run", json={"input": fields, **more}, timeout=30)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def ended(service: Service, job_id: str) -> dict[str, Any]:
    """The job's envelope at its end."""
    for _ in range(20):
        envelope: dict[str, Any] = requests.get(f"{service.url}/status-sync/{job_id}?wait=10000", timeout=30).json()
        if envelope["status"] not in ("IN_QUEUE", "IN_PROGRESS"):
            return envelope
    raise AssertionError(f"never ended: {envelope}")


def post(service: Service, path: str) -> requests.Response:
    return requests.post(f"{service.url}{path}", timeout=30)


def until_in_progress(service: Service, job_id: str) -> None:
    until(lambda: requests.get(f"{service.url}/status/{job_id}", timeout=30).json()["status"] == "IN_PROGRESS")


def test_a_running_job_that_is_cancelled_leaves_the_engine_before_the_next_edit_ends(service: Service) -> None:
    job_id = start(service, LONG)
    until_in_progress(service, job_id)
    for _ in range(3):
        response = post(service, f"/v2/any/cancel/{job_id}")
        assert (response.status_code, response.json()) == (200, {"id": job_id, "status": "CANCELLED"})
    # A hundred such steps take many times as long as this edit's only one.
    quick = service.run(**QUICK)
    assert quick["status"] == "COMPLETED"
    ends = rf"edit (?:{job_id}|{quick['id']}) (cancelled|done)"
    until(lambda: len(re.findall(ends, service.log)) >= 2)
    assert re.findall(ends, service.log) == ["cancelled", "done"]


def test_a_finished_job_that_is_cancelled_stays_finished(service: Service) -> None:
    job_id = start(service)
    done = ended(service, job_id)
    for _ in range(3):
        assert post(service, f"/cancel/{job_id}").json() == {"id": job_id, "status": "COMPLETED"}
    assert ended(service, job_id) == done


def test_a_webhook_that_fails_twice_is_called_three_times(service: Service, receiver: Receiver) -> None:
    path = "/hook/500,500,200"
    job_id = start(service, webhook=f"{receiver.origin}{path}")
    done = ended(service, job_id)
    bodies = receiver.bodies(path, 3)
    time.sleep(1)  # several times the pause between two attempts
    assert receiver.bodies(path, 3) == bodies == [bodies[0]] * 3
    echoed = {key: value for key, value in QUICK.items() if key != "image"}
    assert bodies[0] == {**done, "input": echoed, "webhook": f"{receiver.origin}{path}"}


def test_a_webhook_that_never_answers_delays_nothing(service: Service, receiver: Receiver) -> None:
    for number in range(3):
        path = f"/never/{number}"
        assert ended(service, start(service, webhook=f"{receiver.origin}{path}"))["status"] == "COMPLETED"
        # The job's end was stored before the first attempt was given up, after which there is a second one.
        assert len(receiver.bodies(path, 1)) == 1


def test_twenty_times_the_same_key_is_one_job(service: Service) -> None:
    def send(_: int) -> str:
        headers = {"Idempotency-Key": "twenty"}
        response = requests.post(f"{service.url}/run", json={"input": QUICK}, headers=headers, timeout=60)
        assert response.status_code == 200, response.text
        return str(response.json()["id"])

    with ThreadPoolExecutor(20) as clients:
        ids = set(clients.map(send, range(20)))
    assert len(ids) == 1
    (job_id,) = ids
    ended(service, job_id)
    assert len(service.logged(rf"edit {job_id} done")) == 1


BATCH = {"images": [PICTURE] * 8, "prompt": [f"wish {index}" for index in range(8)]}
LARGE = {"width": 512, "height": 512, "num_inference_steps": 3}


@pytest.mark.parametrize(
    "fields",
    [BATCH, {"image": PICTURE, "prompt": "x", "views": "orbit:8"}],
    ids=["batch of 8", "orbit:8"],
)
def test_the_first_picture_is_streamed_before_the_last_one_is_made(service: Service, fields: dict[str, Any]) -> None:
    job_id = start(service, {**fields, **LARGE})
    first: dict[str, Any] = {}
    streamed: dict[int, str] = {}
    while len(streamed) < 8:
        update = requests.get(f"{service.url}/stream/{job_id}", timeout=30).json()
        streamed |= {
            item["output"]["index"]: item["output"]["image"]
            for item in update["stream"]
            if item["output"]["type"] == "image"
        }
        if streamed and not first:
            first = update
    assert first["status"] == "IN_PROGRESS"
    assert len(first["stream"]) < 8
    images = ended(service, job_id)["output"]["images"]
    assert [streamed[index] for index in range(8)] == images
    for index in range(8):
        assert alike(images[index], alone(service, fields, index))


def alone(service: Service, fields: dict[str, Any], index: int) -> str:
    """The picture of one of a request's edits when sent as a request of its own."""
    if "views" in fields:
        own = {"prompt": fields["prompt"], "azimuth": 45 * index}
    else:
        own = {"prompt": fields["prompt"][index]}
    image: str = service.run(image=PICTURE, **own, **LARGE)["output"]["images"][0]
    return image
