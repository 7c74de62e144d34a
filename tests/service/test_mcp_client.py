"""MCP's own Python client against the real service."""

import asyncio
import base64
from typing import Any

import httpx2
import pytest
import requests
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ImageContent

from tests.pictures import photograph, to_base64
from tests.service.conftest import Service

PICTURE = to_base64(photograph("astronaut", 96, 64))
QUICK: dict[str, Any] = {"image": PICTURE, "size": "64x64", "num_inference_steps": 1, "seed": 7, "output_format": "png"}


def images(result: CallToolResult) -> list[bytes]:
    assert not result.is_error, result.content
    return [base64.b64decode(each.data) for each in result.content if isinstance(each, ImageContent)]


@pytest.mark.parametrize("protocol", ["auto", "legacy"])
def test_all_tools(service: Service, protocol: str) -> None:
    reports: list[tuple[float, float | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        reports.append((progress, total))

    async def work() -> bytes:
        async with (
            asyncio.timeout(120),
            httpx2.AsyncClient(headers={"x-request-id": f"mcp-{protocol}"}, timeout=60) as http,
            Client(streamable_http_client(f"{service.url}/mcp", http_client=http), mode=protocol) as client,
        ):
            assert len((await client.list_tools()).tools) == 4
            (edited,) = images(await client.call_tool("edit_image", {**QUICK, "prompt": "make it sunset"}))
            moved = await client.call_tool("move_camera", {**QUICK, "azimuth": 80})
            assert moved.structured_content["pictures"][0]["camera"]["azimuth"] == 90
            orbit = {**QUICK, "num_views": 2, "num_inference_steps": 2}
            assert len(images(await client.call_tool("orbit", orbit, progress_callback=note))) == 2
            wrong = await client.call_tool("orbit", {**QUICK, "num_views": 9})
            assert wrong.is_error
            assert "num_views must be between 1 and 8" in str(wrong.content)
            await cancel_one(client)
        return edited

    edited = asyncio.run(work())
    assert list(reports[-1]) == [4, 4]
    assert service.logged(rf"edit mcp-{protocol} cancelled after")
    body = {**QUICK, "prompt": "make it sunset"}
    answer = requests.post(f"{service.url}/v1/images/edits", json=body, timeout=60).json()
    assert edited == base64.b64decode(answer["data"][0]["b64_json"])


async def cancel_one(client: Client) -> None:
    """Begin a long edit and cancel it."""
    begun = asyncio.Event()

    async def note(progress: float, total: float | None, message: str | None) -> None:
        begun.set()

    slow = {**QUICK, "prompt": "make it sunset", "size": "512x512", "num_inference_steps": 100}
    calling = asyncio.create_task(client.call_tool("edit_image", slow, progress_callback=note))
    await begun.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
