"""MCP over HTTP as its official Python client speaks it, in both generations of the protocol, without Ray."""

import asyncio
import base64
import gzip
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import jsonschema
import pytest
import uvicorn
from fastapi import FastAPI
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, ImageContent, TextContent

from serve_app.config import AppSettings
from serve_app.edits.camera import AZIMUTH_WORDS, DISTANCE_WORDS, ELEVATION_WORDS
from serve_app.errors import EditFailed
from serve_app.ingress.backend import DRAINS
from tests.ingress.openai_harness import DATA_URL, PNG, Harness, harness, kept_harness

DEADLINE_S = 20
PROTOCOLS = ["2026-07-28", "legacy"]


@pytest.fixture
def app(tiny_settings: AppSettings) -> Harness:
    return kept_harness(tiny_settings)


@asynccontextmanager
async def listening(app: FastAPI) -> AsyncIterator[str]:
    """The URL of `/mcp` of an application under uvicorn."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        finally:
            server.should_exit = True
            await running


@asynccontextmanager
async def connected(app: Harness, protocol: str = "auto", **headers: str) -> AsyncIterator[Client]:
    async with (
        listening(app.app) as url,
        httpx2.AsyncClient(headers=headers, timeout=DEADLINE_S) as http,
        Client(streamable_http_client(url, http_client=http), mode=protocol) as client,
    ):
        yield client


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(DEADLINE_S):
            return await work

    return asyncio.run(bounded())


def call(app: Harness, name: str, protocol: str = "auto", **arguments: Any) -> CallToolResult:
    async def work() -> CallToolResult:
        async with connected(app, protocol) as client:
            return await client.call_tool(name, {"image": DATA_URL, **arguments})

    result: CallToolResult = run(work())
    return result


def images_of(result: CallToolResult) -> list[bytes]:
    return [base64.b64decode(each.data) for each in result.content if isinstance(each, ImageContent)]


def text_of(result: CallToolResult) -> str:
    (text,) = (each.text for each in result.content if isinstance(each, TextContent))
    return text


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_tools_explain_the_poses(app: Harness, protocol: str) -> None:
    async def work() -> Any:
        async with connected(app, protocol) as client:
            return (await client.list_tools()).tools

    tools = {tool.name: tool for tool in run(work())}
    assert list(tools) == ["edit_image", "move_camera", "orbit", "list_adapters"]
    fields = tools["move_camera"].input_schema["properties"]
    for field, words in (("azimuth", AZIMUTH_WORDS), ("elevation", ELEVATION_WORDS), ("distance", DISTANCE_WORDS)):
        assert all(f"{value:g} {name}" in fields[field]["description"] for value, name in words.items())
    assert tools["edit_image"].input_schema["required"] == ["image", "prompt"]
    assert "azimuth" not in tools["edit_image"].input_schema["properties"]
    for tool in tools.values():
        jsonschema.Draft202012Validator.check_schema(tool.input_schema)
        jsonschema.Draft202012Validator.check_schema(tool.output_schema)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_edit_has_its_picture_its_seed_and_its_prompt(app: Harness, protocol: str) -> None:
    result = call(app, "edit_image", protocol, prompt="Make it sunset", seed=7, output_format="png", size="64x96")
    assert not result.is_error
    assert images_of(result) == [b"Make it sunset"]
    assert result.content[0].mime_type == "image/png"  # type: ignore[union-attr]
    (picture,) = result.structured_content["pictures"]
    assert picture == {"seed": 7, "final_prompt": "Make it sunset", "camera": None, "rewrite_problem": None}
    assert result.structured_content["size"] == "64x96"
    assert '"seed": 7' in text_of(result)
    assert app.editor.requests[0].sampling.seed == 7


def test_it_is_the_same_edit_as_openais(app: Harness) -> None:
    fields: dict[str, Any] = {
        "prompt": "x",
        "seed": 7,
        "num_inference_steps": 3,
        "guidance_scale": 2,
        "negative_prompt": "fog",
    }
    look: dict[str, Any] = {"output_format": "webp", "output_compression": 80}
    call(app, "edit_image", **fields, **look)
    assert app.edit("json", **fields, **look).status_code == 200
    first, second = (vars(request) | {"request_id": ""} for request in app.editor.requests)
    assert first == second


@pytest.mark.parametrize("image", [base64.b64encode(PNG).decode(), [DATA_URL, DATA_URL]])
def test_pictures_come_as_base64_or_several(app: Harness, image: Any) -> None:
    assert images_of(call(app, "edit_image", image=image, prompt="x")) == [b"x"]
    assert len(app.shared[0]) == (2 if isinstance(image, list) else 1)


def test_the_camera_moves_to_the_nearest_pose(app: Harness) -> None:
    result = call(app, "move_camera", azimuth=50, elevation=25)
    (picture,) = result.structured_content["pictures"]
    assert picture["camera"] == {"azimuth": 45, "elevation": 30, "distance": 1.0}
    assert picture["final_prompt"] == "<sks> front-right quarter view elevated shot medium shot"
    assert result.structured_content["output_format"] == "jpeg"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_orbit_reports_the_steps_of_all_its_pictures(app: Harness, protocol: str) -> None:
    reports: list[tuple[float, float | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        reports.append((progress, total))

    async def work() -> CallToolResult:
        async with connected(app, protocol) as client:
            arguments = {"image": DATA_URL, "num_views": 4, "num_inference_steps": 2, "elevation": 30}
            return await client.call_tool("orbit", arguments, progress_callback=note)

    result: CallToolResult = run(work())
    cameras = [each["camera"] for each in result.structured_content["pictures"]]
    assert [(each["azimuth"], each["elevation"]) for each in cameras] == [(0, 30), (90, 30), (180, 30), (270, 30)]
    assert len(images_of(result)) == 4
    assert list(reports[-1]) == [8, 8]
    assert reports == sorted(set(reports))


@pytest.mark.parametrize("with_progress", [True, False])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_cancelled_call_ends_its_edit(app: Harness, protocol: str, with_progress: bool) -> None:
    gate = app.editor.gate = asyncio.Semaphore(0)

    async def note(progress: float, total: float | None, message: str | None) -> None:
        pass

    async def work() -> CallToolResult:
        async with connected(app, protocol) as client:
            arguments = {"image": DATA_URL, "prompt": "x"}
            callback = note if with_progress else None
            calling = asyncio.create_task(client.call_tool("edit_image", arguments, progress_callback=callback))
            await until(lambda: len(app.editor.requests) == 1)
            calling.cancel()
            await until(lambda: app.editor.num_cancelled == 1)
            gate.release()
            return await client.call_tool("edit_image", arguments)

    assert images_of(run(work())) == [b"x"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_client_that_leaves_ends_its_edit(app: Harness, protocol: str) -> None:
    app.editor.gate = asyncio.Semaphore(0)

    async def work() -> None:
        body = message("tools/call", name="edit_image", arguments={"image": DATA_URL, "prompt": "x"})
        async with listening(app.app) as url, httpx2.AsyncClient() as http:
            posting = asyncio.create_task(http.post(url, json=body, headers=ACCEPT))
            await until(lambda: len(app.editor.requests) == 1)
            posting.cancel()
            await until(lambda: app.editor.num_cancelled == 1)

    run(work())


def test_another_replica_cancels_what_does_not_run_here(tiny_settings: AppSettings) -> None:
    app = harness(tiny_settings, ("ann:one",))
    calls: list[Any] = []

    async def cancel_elsewhere(call: Any) -> None:
        calls.append(call)

    object.__setattr__(app.backend, "cancel_elsewhere", cancel_elsewhere)
    headers = {**ACCEPT, "authorization": "Bearer one", "mcp-session-id": "s"}
    note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 3}}
    assert app.client.post("/mcp", json=note, headers=headers).status_code == 202
    assert calls == [("ann", "s", 3)]


WRONG: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "no picture": ("edit_image", {"image": None, "prompt": "x"}, "image", "image is required"),
    "no prompt": ("edit_image", {}, "prompt", "prompt is required"),
    "no pose": ("move_camera", {}, "azimuth", "azimuth is required"),
    "a text for a number": ("move_camera", {"azimuth": "left"}, "azimuth", "azimuth must be"),
    "too many views": ("orbit", {"num_views": 9}, "num_views", "num_views must be between 1 and 8, got 9."),
    "a size": ("edit_image", {"prompt": "x", "size": "64x"}, "size", "Invalid size format: '64x'."),
    "a format": ("edit_image", {"prompt": "x", "output_format": "bmp"}, "output_format", "png, jpeg or webp"),
    "a file": ("edit_image", {"prompt": "x", "image": ["AAAA"]}, "image[0]", "image[0]"),
    "five pictures": ("edit_image", {"prompt": "x", "image": [DATA_URL] * 5}, "image", "5 pictures; at most 4"),
    "an unknown field": ("edit_image", {"prompt": "x", "steps": 4}, "steps", "Did you mean 'num_inference_steps'?"),
    "a URL": ("edit_image", {"prompt": "x", "image": "https://a.example/b.png"}, "image", "could not be fetched"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_name_the_field_and_the_fix(app: Harness, name: str) -> None:
    tool, arguments, field, text = WRONG[name]
    result = call(app, tool, **arguments)
    assert result.is_error
    assert text in text_of(result)
    assert result.meta is not None
    assert result.meta["qwen-camera-edit/error"]["field"] == field
    assert app.editor.requests == []


def test_an_edit_that_fails_is_an_error_with_its_reason(app: Harness) -> None:
    app.editor.problem = EditFailed("The picture is too large for this GPU.")
    assert text_of(call(app, "edit_image", prompt="x")) == "The picture is too large for this GPU."
    app.editor.problem = RuntimeError("/secret/path")
    assert text_of(call(app, "edit_image", prompt="x")) == "Internal error; the server's log has the reason."


def test_a_full_queue_says_when_to_try_again(tiny_settings: AppSettings) -> None:
    editor = tiny_settings.editor.model_copy(update={"max_waiting_edits": 1})
    app = harness(tiny_settings.model_copy(update={"editor": editor}))
    app.editor.gate = asyncio.Semaphore(0)

    async def work() -> str:
        async with connected(app) as client:
            arguments = {"image": DATA_URL, "prompt": "x"}
            first = asyncio.create_task(client.call_tool("edit_image", arguments))
            await until(lambda: len(app.editor.requests) == 1)
            second = await client.call_tool("edit_image", arguments)
            assert app.editor.gate is not None
            app.editor.gate.release()
            assert images_of(await first) == [b"x"]
            return text_of(second)

    assert run(work()).endswith("Try again in 5 s.")


def test_the_adapters_are_listed_with_their_bounds(app: Harness, tiny_settings: AppSettings) -> None:
    async def work() -> CallToolResult:
        async with connected(app) as client:
            return await client.call_tool("list_adapters", {})

    listed = run(work()).structured_content["adapters"]
    shown = {"name", "apply", "weight", "min_weight", "max_weight", "trigger_words"}
    assert listed == [lora.model_dump(mode="json", include=shown) for lora in tiny_settings.editor.loras]
    assert [each["apply"] for each in listed] == ["fused", "fused", "request"]


def test_an_unknown_tool_is_an_error_of_the_protocol(app: Harness) -> None:
    async def work() -> None:
        async with connected(app) as client:
            with pytest.raises(MCPError, match="There is no tool 'paint'"):
                await client.call_tool("paint", {})

    run(work())


# What the official client does not send.

ACCEPT = {"accept": "application/json, text/event-stream"}


def message(method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


LIST = message("tools/list")


def test_a_key_is_needed_where_keys_are_set(tiny_settings: AppSettings) -> None:
    app = harness(tiny_settings, ("one",))
    answer = app.client.post("/mcp", json=LIST, headers=ACCEPT)
    assert answer.status_code == 401
    assert answer.json()["error"]["data"] == {"status": 401, "code": "unauthorized", "field": None}
    assert app.client.post("/mcp", json=LIST, headers={**ACCEPT, "authorization": "Bearer one"}).status_code == 200


def test_a_drain_refuses_calls_and_says_so(app: Harness) -> None:
    app.backend.draining.begin()
    answer = app.client.post("/mcp", json=LIST, headers=ACCEPT)
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == DRAINS


@pytest.mark.parametrize("path", ["/mcp", "/v2/any/mcp"])
def test_it_can_be_switched_off(tiny_settings: AppSettings, app: Harness, path: str) -> None:
    assert app.client.post(path, json=LIST, headers=ACCEPT).status_code == 200
    off = harness(tiny_settings.model_copy(update={"mcp": False}))
    answer = off.client.post(path, json=LIST, headers=ACCEPT)
    assert answer.status_code == 404
    assert "where the setting mcp is on" in answer.json()["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_no_session_is_kept(app: Harness, method: str) -> None:
    assert app.client.request(method, "/mcp", headers=ACCEPT).status_code == 405


def test_large_bodies_are_refused_and_compressed_ones_read(tiny_settings: AppSettings) -> None:
    limits = tiny_settings.limits.model_copy(update={"max_body_bytes": 1000})
    app = harness(tiny_settings.model_copy(update={"limits": limits}))
    large = app.client.post("/mcp", json=message("tools/call", name="x" * 2000), headers=ACCEPT)
    assert large.status_code == 413
    assert large.json()["error"]["data"]["code"] == "body_too_large"
    packed = gzip.compress(json.dumps(LIST).encode())
    headers = {**ACCEPT, "content-encoding": "gzip", "content-type": "application/json"}
    assert app.client.post("/mcp", content=packed, headers=headers).json()["result"]["tools"]


@pytest.mark.parametrize("body", [b"{", b"[" * 40 + b"]" * 40])
def test_what_is_not_json_is_refused(app: Harness, body: bytes) -> None:
    headers = {**ACCEPT, "content-type": "application/json"}
    assert app.client.post("/mcp", content=body, headers=headers).status_code == 400


@pytest.mark.parametrize("body", [[LIST], [], 1, {}, {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}])
def test_what_is_no_message_is_an_error_of_the_protocol(app: Harness, body: Any) -> None:
    answer = app.client.post("/mcp", json=body, headers=ACCEPT)
    assert answer.json()["error"]["code"] < 0


ORIGINS = {
    "http://evil.example": (False, "127.0.0.1:8000"),
    "http://rebound.example:8000": (False, "rebound.example:8000"),
    "null": (False, "127.0.0.1:8000"),
    "http://127.0.0.1:8000": (True, "127.0.0.1:8000"),
    "https://page.example": (True, "edit.example"),
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_only_pages_of_allowed_origins_may_call(tiny_settings: AppSettings, origin: str) -> None:
    app = harness(tiny_settings.model_copy(update={"cors_origins": ("https://page.example",)}))
    allowed, host = ORIGINS[origin]
    answer = app.client.post("/mcp", json=LIST, headers={**ACCEPT, "origin": origin, "host": host})
    assert answer.status_code == (200 if allowed else 403)
