"""MCP's own clients at a service that requires an API key."""

import asyncio

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from tests.service.conftest import Service
from tests.service.node import installed_clients, needs_node, run

DATA = {"status": 401, "code": "unauthorized", "field": None}


@pytest.mark.parametrize("protocol", ["auto", "legacy"])
@pytest.mark.parametrize("key", [None, "wrong"])
def test_python_without_the_key(toy: Service, protocol: str, key: str | None) -> None:
    refused = pytest.RaisesExc(
        MCPError, match="The API key is missing or wrong", check=lambda found: found.data == DATA
    )
    with pytest.RaisesGroup(refused, flatten_subgroups=True):
        num_tools(toy.url, protocol, key)


def test_python_with_the_key(toy: Service) -> None:
    assert num_tools(toy.url, "auto", toy.key) == 4


def num_tools(url: str, protocol: str, key: str | None) -> int:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}

    async def work() -> int:
        async with (
            asyncio.timeout(60),
            httpx2.AsyncClient(headers=headers) as http,
            Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=protocol) as client,
        ):
            return len((await client.list_tools()).tools)

    return asyncio.run(work())


@needs_node
def test_typescript(toy: Service) -> None:
    assert toy.key is not None
    output = run(["node", "--test", "mcp-key.test.mjs"], installed_clients(), BASE_URL=toy.url, KEY=toy.key)
    assert "pass 3" in output
