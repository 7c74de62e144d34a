"""RunPod's own Python clients, with nothing changed but the base URL."""

import asyncio
from typing import Any

import pytest
import requests
import runpod
from runpod.endpoint.asyncio.asyncio_runner import Endpoint as AsyncioEndpoint
from runpod.http_client import AsyncClientSession

from tests.pictures import alike, photograph, to_base64
from tests.service.conftest import Service

PICTURE = to_base64(photograph("astronaut", 96, 64))
SMALL = {"image": PICTURE, "prompt": "make it sunset", "width": 64, "height": 64, "num_inference_steps": 1}
LONG = {**SMALL, "width": 512, "height": 512, "num_inference_steps": 100}


@pytest.fixture
def endpoint(service: Service, monkeypatch: pytest.MonkeyPatch) -> runpod.Endpoint:
    monkeypatch.setattr(runpod, "endpoint_url_base", f"{service.url}/v2")
    monkeypatch.setattr(runpod, "api_key", "any-key")
    return runpod.Endpoint("any-endpoint")


def alone(service: Service, **fields: Any) -> str:
    """The first picture of an edit sent on its own."""
    image: str = service.run(**fields)["output"]["images"][0]
    return image


def test_run_sync(endpoint: runpod.Endpoint, service: Service) -> None:
    output = endpoint.run_sync({"input": SMALL})
    assert output["images"] == [alone(service, **SMALL)]
    # The client wraps an input that is not wrapped yet.
    assert endpoint.run_sync(SMALL) == output


def test_run_then_poll(endpoint: runpod.Endpoint, service: Service) -> None:
    job = endpoint.run({"input": SMALL})
    assert job.output(timeout=30)["images"] == [alone(service, **SMALL)]
    assert job.status() == "COMPLETED"


def test_stream(endpoint: runpod.Endpoint, service: Service) -> None:
    job = endpoint.run({"input": {**SMALL, "views": "orbit:4"}})
    items = [item for item in job.stream() if item["type"] == "image"]
    assert sorted(item["index"] for item in items) == [0, 1, 2, 3]
    for item in items:
        assert alike(item["image"], alone(service, **SMALL, azimuth=90 * item["index"]))


def test_an_adapter(endpoint: runpod.Endpoint, service: Service) -> None:
    styled = {**SMALL, "seed": 7, "loras": [{"name": "cyanotype"}]}
    (by_client,) = endpoint.run_sync({"input": styled})["images"]
    same = {"image": f"data:image/png;base64,{PICTURE}", "model": "cyanotype", "size": "64x64"}
    body = {**same, "prompt": SMALL["prompt"], "seed": 7, "num_inference_steps": 1}
    answer = requests.post(f"{service.url}/v1/images/edits", json=body, timeout=60)
    assert by_client == answer.json()["data"][0]["b64_json"]
    assert by_client != alone(service, **SMALL, seed=7)
    with pytest.raises(requests.HTTPError) as caught:
        endpoint.run_sync({"input": {**styled, "loras": [{"name": "cyanotipe"}]}})
    assert "Did you mean 'cyanotype'?" in caught.value.response.json()["error"]


def test_cancel(endpoint: runpod.Endpoint) -> None:
    job = endpoint.run({"input": LONG})
    assert job.cancel() == {"id": job.job_id, "status": "CANCELLED"}
    assert job.status() == "CANCELLED"


def test_health_and_purge_queue(endpoint: runpod.Endpoint) -> None:
    health = endpoint.health()
    assert health["jobs"].keys() == {"completed", "failed", "inProgress", "inQueue", "retried"}
    assert health["workers"]["ready"] >= 1
    assert endpoint.purge_queue()["status"] == "completed"


def test_a_refusal_carries_its_reason(endpoint: runpod.Endpoint) -> None:
    with pytest.raises(requests.HTTPError) as caught:
        endpoint.run_sync({"input": {**SMALL, "num_inference_steps": 0}})
    assert caught.value.response.status_code == 400
    assert "num_inference_steps must be between 1 and" in caught.value.response.json()["error"]


@pytest.mark.usefixtures("endpoint")
def test_asyncio_endpoint(service: Service) -> None:
    async def drive() -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
        async with AsyncClientSession() as session:
            endpoint = AsyncioEndpoint("any-endpoint", session)
            job = await endpoint.run(SMALL)
            output = await job.output(timeout=30)
            assert await job.status() == "COMPLETED"
            streamed = [item async for item in (await endpoint.run(SMALL)).stream()]
            cancelled = await (await endpoint.run(LONG)).cancel()
            assert (await endpoint.health())["workers"]["ready"] >= 1
            assert (await endpoint.purge_queue())["status"] == "completed"
            return output, streamed, cancelled

    output, streamed, cancelled = asyncio.run(drive())
    assert output["images"] == [alone(service, **SMALL)]
    assert [item["image"] for item in streamed if item["type"] == "image"] == output["images"]
    assert cancelled["status"] == "CANCELLED"
