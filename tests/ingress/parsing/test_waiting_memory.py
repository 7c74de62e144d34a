"""A request that waits for its edits keeps no copy of its body in memory."""

import asyncio
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve_app.config import AppSettings
from tests.ingress.openai_harness import EDITS, Harness, harness
from tests.pictures import to_base64
from tests.waiting import until_async

SIDE_PX = 1000
"""Its picture, noise without compression, has 3 MB; prepared, it is much smaller."""
MAX_KEPT_BYTES = 2**20


def noise() -> str:
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE_PX, SIDE_PX, 3), np.uint8)
    return to_base64(Image.fromarray(pixels), compress_level=0)


def sent(app: Harness, path: str, body: bytes, **headers: str) -> "asyncio.Task[None]":
    chunks = [body]

    async def receive() -> dict[str, Any]:
        if chunks:
            return {"type": "http.request", "body": chunks.pop(), "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        "client": ("test", 1),
    }
    return asyncio.create_task(app.app(scope, receive, send))


@pytest.mark.parametrize(
    ("path", "fields", "headers"),
    [
        ("/runsync", {}, {}),
        (EDITS, {}, {}),
        (EDITS, {"stream": True}, {}),
        (EDITS, {}, {"idempotency_key": "key"}),
        (EDITS, {"stream": True}, {"idempotency_key": "key"}),
    ],
)
def test_after_its_submission(
    tiny_settings: AppSettings, path: str, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    async def scenario() -> None:
        app = harness(tiny_settings)
        app.editor.gate, app.jobs.num_waits = asyncio.Semaphore(0), None

        def request() -> bytes:
            if path == EDITS:
                return json.dumps({"image": f"data:image/png;base64,{noise()}", "prompt": "x", **fields}).encode()
            return json.dumps({"input": {"image": noise(), "prompt": "x"}}).encode()

        def num_submitted() -> int:
            return len(app.jobs.specs) + len(app.editor.requests)

        warm_up = sent(app, path, request(), **headers)
        await until_async(lambda: num_submitted() == 1)
        headers_of_second = {name: f"another {value}" for name, value in headers.items()}
        tracemalloc.start()
        try:
            task = sent(app, path, request(), **headers_of_second)
            await until_async(lambda: num_submitted() == 2)
            await asyncio.sleep(0.05)  # until the route has returned
            kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes > 3 * SIDE_PX**2
        assert kept_bytes <= MAX_KEPT_BYTES
        for each in (warm_up, task):
            each.cancel()
        await asyncio.gather(warm_up, task, return_exceptions=True)

    asyncio.run(scenario())
