"""`camera-edit mcp`: a bridge for MCP clients that only start programs. It offers a service's tools over its standard
input and output."""

import asyncio
from functools import partial
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.stdio import stdio_server
from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult, PaginatedRequestParams

from serve_app import __version__
from serve_app.errors import ConfigError
from serve_app.tools.connection import KEY_VARIABLE, Connection, find_connection

SILENCE_S = 60.0
"""Longer than the pings of a response that reports progress are apart."""


def run_bridge(url: str | None, key: str | None) -> None:
    """Bridge until standard input ends.

    Args:
        url: of the service, with or without `/mcp`. It and the key: None: as `find_connection` finds them.

    Raises:
        UsageError: the URL or the key cannot be used.
        ConfigError: there is no service at the URL, or it refuses the key.
    """
    asyncio.run(_bridge(find_connection(url and url.rstrip("/").removesuffix("/mcp"), key)))


async def _bridge(service: Connection) -> None:
    endpoint = f"{service.url}/mcp"
    options: dict[str, Any] = service.client_options
    async with httpx2.AsyncClient(timeout=SILENCE_S, **options) as http:
        await _check(http, endpoint)
        # Without its limit: one event holds all pictures of an orbit.
        async with Client(streamable_http_client(endpoint, http_client=http, max_sse_event_size=None)) as client:
            server = _server(client)
            async with stdio_server() as (reading, writing):
                await server.run(reading, writing, server.create_initialization_options())


async def _check(http: httpx2.AsyncClient, endpoint: str) -> None:
    """The SDK's own errors at the start name neither the URL nor the key."""
    try:
        status = (await http.get(endpoint)).status_code
    except httpx2.HTTPError as problem:
        raise ConfigError(f"{endpoint} cannot be reached: {problem}. Start the service, or correct --url.") from None
    if status == 401:
        raise ConfigError(f"{endpoint} needs an API key: set {KEY_VARIABLE}, or give --key.")
    if status != 405:  # the answer of a service that has the route, which takes POST only
        raise ConfigError(f"{endpoint} is no MCP endpoint (status {status}). Correct --url, or set mcp: true there.")


def _server(client: Client) -> "Server[Any]":
    async def list_tools(context: ServerRequestContext, params: PaginatedRequestParams | None) -> ListToolsResult:
        return await client.list_tools()

    return Server(
        "qwen-camera-edit",
        version=__version__,
        instructions=client.instructions,
        on_list_tools=list_tools,
        on_call_tool=partial(_call, client),
    )


async def _call(client: Client, context: ServerRequestContext, params: CallToolRequestParams) -> CallToolResult:
    # Always with progress, whose stream shows by its pings that the service is alive.
    return await client.call_tool(params.name, params.arguments, progress_callback=context.session.report_progress)
