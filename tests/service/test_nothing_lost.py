"""Processes are killed in mid-job: every accepted job ends COMPLETED, once, with the picture of an undisturbed run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pictures import alike, photograph, to_base64
from tests.processes import free_port, redis_server
from tests.service.conftest import (
    Service,
    jobs_of,
    serve_run,
    stop,
    tiny_file,
    wait_until_ready,
)
from tests.service.kill import kill_all, kill_replica
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


def test_the_whole_service_is_killed(tmp_path: Path, receiver: Receiver) -> None:
    port = free_port()
    file = tiny_file(tmp_path / "tiny.yaml", port, jobs=jobs_of(tmp_path, receiver), rewriter=None)
    service = Service(f"http://127.0.0.1:{port}", tmp_path / "serve.log")
    process = serve_run(file, service.log_file)
    try:
        wait_until_ready(service, process)
        ids = submit_all(service, receiver, "/all-killed/200")
    finally:
        kill_all(process)
    process = serve_run(file, service.log_file)
    try:
        wait_until_ready(service, process)
        check_all(service, receiver, "/all-killed/200", ids)
    finally:
        stop(process)


@pytest.fixture
def redis_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


def test_the_jobs_replica_is_killed(tmp_path: Path, receiver: Receiver, redis_url: str) -> None:
    port = free_port()
    jobs = {**jobs_of(tmp_path, receiver), "store": {"kind": "redis", "url": redis_url}}
    service = Service(f"http://127.0.0.1:{port}", tmp_path / "serve.log")
    process = serve_run(tiny_file(tmp_path / "tiny.yaml", port, jobs=jobs, rewriter=None), service.log_file)
    try:
        wait_until_ready(service, process)
        ids = submit_all(service, receiver, "/jobs-killed/200")
        assert kill_replica(process, "Jobs")
        check_all(service, receiver, "/jobs-killed/200", ids)
    finally:
        stop(process)
