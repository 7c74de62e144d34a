"""`camera-edit run` on SIGTERM. Its name makes this file the last one of its service."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import requests

from tests.service.conftest import KEY_IN_FILE, Host, Service
from tests.service.load import EDIT

BEARER = {"authorization": f"Bearer {KEY_IN_FILE}"}


def test_on_sigterm_one_running_and_five_queued_are_answered_and_new_ones_refused(
    narrow_host: Host,
) -> None:
    service, process = narrow_host.service, narrow_host.process
    middling = {**EDIT, "width": 512, "height": 512, "num_inference_steps": 15}

    def send(seed: int) -> requests.Response:
        body = {"input": {**middling, "seed": seed}}
        return requests.post(f"{service.url}/runsync?wait=120000", json=body, headers=BEARER, timeout=150)

    def jobs() -> dict[str, int]:
        counts: dict[str, int] = requests.get(f"{service.url}/health", headers=BEARER, timeout=30).json()["jobs"]
        return counts

    with ThreadPoolExecutor(6) as clients:
        answers = [clients.submit(send, seed) for seed in range(6)]
        deadline = time.monotonic() + 30
        while (counts := jobs()) and (counts["inProgress"], counts["inQueue"]) != (1, 5):
            assert time.monotonic() < deadline, counts
            time.sleep(0.05)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        until_refusing(service)
        assert requests.get(f"{service.url}/health/ready", timeout=30).json() == {
            "status": "not ready",
            "reason": "draining",
        }
        assert jobs()["inQueue"] > 0
        assert process.wait(120) == 0
    statuses = [answer.result().status_code for answer in answers]
    print(f"six answers {statuses}; ended {time.monotonic() - began:.1f} s after SIGTERM")
    assert statuses == [200] * 6
    assert {answer.result().json()["status"] for answer in answers} == {"COMPLETED"}
    assert "requests and 6 jobs" in service.log


def until_refusing(service: Service) -> None:
    """Wait until new work is refused with 503 and Retry-After, in both dialects."""
    deadline = time.monotonic() + 30
    body = {"input": {**EDIT, "image": "no picture, which is a 400 as long as work is taken"}}
    while (response := requests.post(f"{service.url}/run", json=body, headers=BEARER, timeout=30)).status_code == 400:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert requests.post(f"{service.url}/v1/images/edits", headers=BEARER, timeout=30).status_code == 503
