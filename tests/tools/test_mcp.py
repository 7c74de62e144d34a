"""The stdio bridge as an MCP client starts it, and what it says when it cannot start."""

import asyncio
import os
import socket
import sys

import pytest
import uvicorn
from mcp import Client, StdioServerParameters

from serve_app.cli import main
from serve_app.config import AppSettings
from tests.ingress.openai_harness import DATA_URL, harness
from tests.processes import free_port


def test_the_bridge_forwards_tools_progress_cancellation_and_errors(tiny_settings: AppSettings) -> None:
    app = harness(tiny_settings, ("one",))
    gate = app.editor.gate = asyncio.Semaphore(2)
    reports: list[float] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        reports.append(progress)

    async def work(url: str) -> None:
        bridge = StdioServerParameters(
            command=sys.executable,
            args=["-m", "serve_app.cli", "mcp"],
            env={**os.environ, "CAMERA_EDIT_URL": url, "CAMERA_EDIT_API_KEY": "one"},
        )
        async with asyncio.timeout(60), Client(bridge) as client:
            assert "orbit" in [tool.name for tool in (await client.list_tools()).tools]
            orbit = {"image": DATA_URL, "num_views": 2, "num_inference_steps": 2}
            result = await client.call_tool("orbit", orbit, progress_callback=note)
            assert [each.type for each in result.content] == ["image", "image", "text"]
            wrong = await client.call_tool("orbit", {"image": DATA_URL, "num_views": 9})
            assert wrong.is_error
            assert "num_views must be between 1 and 8" in str(wrong.content)
            calling = asyncio.create_task(client.call_tool("edit_image", {"image": DATA_URL, "prompt": "x"}))
            while len(app.editor.requests) < 3:
                await asyncio.sleep(0.01)
            calling.cancel()
            while app.editor.num_cancelled < 1:
                await asyncio.sleep(0.01)

    async def serve() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = uvicorn.Server(uvicorn.Config(app.app, lifespan="off", log_config=None))
            running = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                await work(f"http://127.0.0.1:{listener.getsockname()[1]}")
            finally:
                server.should_exit = True
                await running

    asyncio.run(serve())
    assert reports[-1] == 4
    assert gate.locked()


def test_without_a_service_the_bridge_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mcp", "--url", f"http://127.0.0.1:{free_port()}"]) == 1
    assert "cannot be reached" in capsys.readouterr().err
