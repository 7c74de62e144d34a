"""Processes are killed in mid-job: every accepted job ends COMPLETED, once, with the picture of an undisturbed run."""

import json
from typing import Any

import pytest

from serve_app.jobs.store_link import CALL_TIMEOUT_S
from tests.pictures import alike, photograph, to_base64
from tests.service.conftest import OnRedis, Service
from tests.service.kill import kill_replica
from tests.service.outage import judge, live
from tests.service.receiver import Receiver
from tests.service.test_jobs import ended, start, until_in_progress

PICTURE = to_base64(photograph("astronaut", 96, 64))
MIDDLING = {"image": PICTURE, "prompt": "x", "width": 256, "height": 256, "num_inference_steps": 8}
WISHES: list[dict[str, Any]] = [
    {**MIDDLING, "num_inference_steps": 100},  # surely not done when its process is killed
    {**MIDDLING, "views": "orbit:3"},
    {**MIDDLING, "images": [PICTURE] * 2, "image": None, "prompt": ["a", "b"]},
]


def submit_all(service: Service, receiver: Receiver, path: str) -> list[str]:
    """All wishes as jobs, of which the first one runs already."""
    hook = f"{receiver.origin}{path}"
    first = start(service, WISHES[0], webhook=hook)
    until_in_progress(service, first)
    return [first, *(start(service, wish, webhook=hook) for wish in WISHES[1:])]


_undisturbed: dict[str, dict[str, Any]] = {}


def undisturbed_run(service: Service, wish: dict[str, Any]) -> dict[str, Any]:
    """A wish's output where nothing is killed; of one service, for the others draw the same."""
    key = json.dumps(wish)
    if key not in _undisturbed:
        _undisturbed[key] = service.run(**wish)["output"]
    return _undisturbed[key]


def check_all(service: Service, receiver: Receiver, path: str, ids: list[str]) -> None:
    told = receiver.bodies(path, len(ids), timeout_s=90)
    assert sorted(body["id"] for body in told) == sorted(ids)
    for job_id, wish in zip(ids, WISHES, strict=True):
        envelope = ended(service, job_id)
        assert envelope["status"] == "COMPLETED"
        undisturbed = undisturbed_run(service, wish)
        assert all(alike(*pair) for pair in zip(envelope["output"]["images"], undisturbed["images"], strict=True))
        assert envelope["output"]["final_prompts"] == undisturbed["final_prompts"]
    # Nothing is told twice.
    assert len(receiver.bodies(path, len(ids))) == len(ids)


def test_the_jobs_replica_is_killed(on_redis: OnRedis, receiver: Receiver) -> None:
    ids = submit_all(on_redis.service, receiver, "/jobs-killed/200")
    assert kill_replica(on_redis.process, "Jobs")
    check_all(on_redis.service, receiver, "/jobs-killed/200", ids)


@pytest.mark.parametrize("how", ["stopped", "hanging"])
def test_the_job_store_is_away_for_a_while(on_redis: OnRedis, receiver: Receiver, how: str) -> None:
    redis = on_redis.redis
    cut, mend = (redis.stop, redis.start) if how == "stopped" else (redis.pause, redis.go_on)
    # What hangs counts as away only when a call has not been answered for so long.
    outage_s = 5.0 if how == "stopped" else CALL_TIMEOUT_S + 3.0
    verdict = judge(on_redis.service, receiver, live(on_redis.service, receiver, f"/{how}/200", cut, mend, outage_s, 8))
    print(f"a job was accepted {verdict.accepted_after_s:.2f} s after the return of a store that was {how}")
    assert verdict.problems == []
