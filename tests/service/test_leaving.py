"""A client who leaves: the edit leaves the engine at its next step, and others have its room."""

import re
import time

import pytest
import requests

from tests.pictures import photograph, to_base64
from tests.service.conftest import Service

PICTURE = to_base64(photograph("astronaut", 128, 128))
LONG = {"image": PICTURE, "prompt": "a long edit", "num_inference_steps": 100, "width": 512, "height": 512}
SHORT = {"image": PICTURE, "prompt": "x", "num_inference_steps": 1}


def test_an_edit_whose_client_has_gone_is_dropped(service: Service) -> None:
    service.run(**SHORT)
    before = ended(service)
    with pytest.raises(requests.ReadTimeout):
        requests.post(f"{service.url}/runsync", json={"input": LONG}, timeout=(5, 1.0))
    deadline = time.monotonic() + 20
    while not (new := ended(service)[len(before) :]):
        assert time.monotonic() < deadline, "the edit never left the engine"
        time.sleep(0.05)
    (job_id, how, after_s) = new[0]
    assert how == "cancelled"
    # 100 such steps take several times as long; what is allowed here is one step, and the news of the client's leaving.
    assert float(after_s) < 3.0
    assert service.run(**SHORT)["status"] == "COMPLETED"
    assert f"edit {job_id} done" not in service.log


def ended(service: Service) -> list[tuple[str, str, str]]:
    return re.findall(r"edit (\S+) (cancelled|expired) after ([\d.]+) s", service.log)
