"""Processes are killed in mid-job: every accepted job ends COMPLETED, once, with the picture of an undisturbed run."""

import json
from typing import Any

import pytest

from serve_app.jobs.store_link import CALL_TIMEOUT_S
from tests.pictures import alike, photograph, to_base64
from tests.service.conftest import OnRedis, Service
from tests.service.kill import kill_replica
from tests.service.outage import evaluate, run_load
from tests.service.receiver import Receiver
from tests.service.test_jobs import ended, start, until_in_progress

PICTURE = to_base64(photograph("astronaut", 96, 64))
MIDDLING = {"image": PICTURE, "prompt": "x", "width": 256, "height": 256, "num_inference_steps": 8}
INPUTS: list[dict[str, Any]] = [
    {**MIDDLING, "num_inference_steps": 100},  # surely not done when its process is killed
    {**MIDDLING, "views": "orbit:3"},
    {**MIDDLING, "images": [PICTURE] * 2, "image": None, "prompt": ["a", "b"]},
]


def submit_all(service: Service, receiver: Receiver, path: str) -> list[str]:
    """Submit all inputs as jobs; returns their ids once the first one runs."""
    hook = f"{receiver.origin}{path}"
    first = start(service, INPUTS[0], webhook=hook)
    until_in_progress(service, first)
    return [first, *(start(service, fields, webhook=hook) for fields in INPUTS[1:])]


_undisturbed: dict[str, dict[str, Any]] = {}


def undisturbed_run(service: Service, fields: dict[str, Any]) -> dict[str, Any]:
    """The output when nothing is killed; cached from one service, as all draw the same."""
    key = json.dumps(fields)
    if key not in _undisturbed:
        _undisturbed[key] = service.run(**fields)["output"]
    return _undisturbed[key]


def check_all(service: Service, receiver: Receiver, path: str, ids: list[str]) -> None:
    notified = receiver.bodies(path, len(ids), timeout_s=90)
    assert sorted(body["id"] for body in notified) == sorted(ids)
    for job_id, fields in zip(ids, INPUTS, strict=True):
        envelope = ended(service, job_id)
        assert envelope["status"] == "COMPLETED"
        undisturbed = undisturbed_run(service, fields)
        assert all(alike(*pair) for pair in zip(envelope["output"]["images"], undisturbed["images"], strict=True))
        assert envelope["output"]["final_prompts"] == undisturbed["final_prompts"]
    # No webhook is sent twice.
    assert len(receiver.bodies(path, len(ids))) == len(ids)


def test_the_jobs_replica_is_killed(on_redis: OnRedis, receiver: Receiver) -> None:
    ids = submit_all(on_redis.service, receiver, "/jobs-killed/200")
    assert kill_replica(on_redis.process, "Jobs")
    check_all(on_redis.service, receiver, "/jobs-killed/200", ids)


@pytest.mark.parametrize("how", ["stopped", "hanging"])
def test_the_job_store_is_unavailable_for_a_while(on_redis: OnRedis, receiver: Receiver, how: str) -> None:
    redis = on_redis.redis
    stop_store, restore_store = (redis.stop, redis.start) if how == "stopped" else (redis.pause, redis.resume)
    # A store that hangs counts as unavailable only after a call has timed out.
    outage_s = 5.0 if how == "stopped" else CALL_TIMEOUT_S + 3.0
    record = run_load(on_redis.service, receiver, f"/{how}/200", stop_store, restore_store, outage_s, 8)
    outcome = evaluate(on_redis.service, receiver, record)
    print(f"a job was accepted {outcome.accepted_after_s:.2f} s after the return of a store that was {how}")
    assert outcome.problems == []
