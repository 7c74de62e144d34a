"""A device that fails under an edit: how each edit ends, and that the editor is replaced."""

import time
from typing import Any

import pytest
import requests

from tests.service.conftest import OnRedis, Service
from tests.service.faulty import LARGE_WIDTH, LOST_WIDTH
from tests.service.load import EDIT
from tests.service.test_jobs import ended, start
from tests.waiting import until


@pytest.fixture
def faulty(on_redis: OnRedis) -> Service:
    assert on_redis.service.run(**EDIT)["status"] == "COMPLETED"
    return on_redis.service


def health(service: Service) -> int:
    return requests.get(f"{service.url}/health/ready", timeout=30).status_code


def test_a_cuda_error_fails_the_edit_and_replaces_the_editor(faulty: Service, on_redis: OnRedis) -> None:
    """The editor ends at its first failed health check; Serve would stop it after the third."""
    on_redis.fault.touch()
    envelope = ended(faulty, start(faulty, {**EDIT, "width": LOST_WIDTH}))
    began = time.monotonic()
    assert envelope["status"] == "FAILED"
    assert "device failed" in envelope["error"]
    until(lambda: health(faulty) == 503)
    # Work that comes now is not refused: it waits for the new editor.
    waiting = start(faulty, EDIT)
    until(lambda: health(faulty) == 200, pause_s=0.25)  # each request costs the service time
    print(f"the editor was replaced {time.monotonic() - began:.1f} s after the CUDA error")
    assert ended(faulty, waiting)["status"] == "COMPLETED"
    assert len(faulty.logged("the engine has come to its end, and this replica with it")) == 1
    assert faulty.run(**{**EDIT, "width": LOST_WIDTH})["status"] == "COMPLETED"


def test_without_enough_memory_only_the_edit_that_needs_it_fails(faulty: Service) -> None:
    middling: dict[str, Any] = {**EDIT, "num_inference_steps": 30}
    small, large = start(faulty, middling), start(faulty, {**middling, "width": LARGE_WIDTH})
    envelope = ended(faulty, large)
    assert envelope["status"] == "FAILED"
    assert "more memory than the server has" in envelope["error"]
    assert ended(faulty, small)["status"] == "COMPLETED"
    assert health(faulty) == 200
