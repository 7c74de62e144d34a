"""Many different requests at once: each gets the same picture as alone, and they share steps."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.pictures import difference, from_base64, photograph, pixels_of, to_base64
from tests.service.conftest import Service

PHOTOS = [to_base64(photograph(name)) for name in ("astronaut", "coffee", "chelsea")]
PHOTOS.append(to_base64(photograph("coffee", 200, 400)))


def request_number(number: int) -> dict[str, Any]:
    """A request that differs from the others in pictures, size, prompt, steps, guidance and seed."""
    num_pictures = 1 + number % 3
    return {
        "images": [PHOTOS[(number + index) % len(PHOTOS)] for index in range(num_pictures)],
        "prompt": f"Wish number {number}, " * (1 + number % 5),
        "azimuth": 45 * number if number % 2 else None,
        "num_inference_steps": 3 + number % 5,
        "guidance_scale": 1.5 if number % 4 == 3 else 1.0,
        "width": 128 + 16 * number if number % 3 == 0 else None,
        "seed": number,
    }


def test_16_different_requests_at_once_equal_their_solo_results(service: Service) -> None:
    requests = [request_number(number) for number in range(16)]
    alone = [service.run(**request) for request in requests]
    with ThreadPoolExecutor(len(requests)) as clients:
        together = list(clients.map(lambda request: service.run(**request), requests))
    assert [envelope["status"] for envelope in together] == ["COMPLETED"] * len(requests)
    assert [levels(*pair) for pair in zip(together, alone, strict=True) if levels(*pair) > 1] == []
    shared = [shared_steps(service, envelope["id"]) for envelope in together]
    assert sum(steps > 0 for steps in shared) > len(requests) / 2, shared
    assert [shared_steps(service, envelope["id"]) for envelope in alone] == [0] * len(requests)


def levels(one: dict[str, Any], other: dict[str, Any]) -> int:
    assert one["output"]["final_prompts"] == other["output"]["final_prompts"]
    pictures = [pixels_of(from_base64(envelope["output"]["images"][0])) for envelope in (one, other)]
    return difference(*pictures)


def shared_steps(service: Service, job_id: str) -> int:
    """The number of shared steps that the engine logs for an edit."""
    found = re.search(rf"edit {job_id} done: .*?shared_steps=(\d+)", service.log)
    assert found is not None, f"no log line of {job_id}"
    return int(found[1])
