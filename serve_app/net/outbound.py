"""Outbound HTTP requests to URLs that a client chooses among the origins that the operator allows."""

import asyncio
import functools
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx2

from serve_app.net.addresses import Network, addresses_of
from serve_app.net.origins import origin_of

CONNECT_TIMEOUT_S = 5.0
"""For one address of a host; then the next one is tried, within the timeout of the exchange."""


class Unreachable(Exception):
    """The URL cannot be reached. The message is for logs only, since it reveals the network's layout."""


@dataclass(frozen=True)
class Outbound:
    """Sends requests without redirects, proxies, cookies, or anything else from the environment.

    A host's name is resolved once, and the request goes to an address that was checked, so that a second resolution
    cannot differ. TLS verifies the host by its name.

    Args:
        origins: where requests may go, as `origin_of` writes them.
        private_networks: where these hosts may have addresses that are not public.
        timeout_s: for the whole exchange, from name resolution to the last byte of the response.
    """

    origins: tuple[str, ...]
    private_networks: tuple[Network, ...]
    timeout_s: float

    @asynccontextmanager
    async def exchange(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None = None
    ) -> AsyncIterator[httpx2.Response]:
        """The response; its body is not read yet.

        Raises:
            Unreachable: also from inside the `async with` block while the body is read.
        """
        if origin_of(url) not in self.origins:
            raise Unreachable("the origin is not allowed")
        request = httpx2.Request(method, url, headers=headers, content=content)
        try:
            async with asyncio.timeout(self.timeout_s), _transport() as transport:
                response = await self._send(transport, request)
                try:
                    yield response
                finally:
                    await response.aclose()
        except (httpx2.HTTPError, OSError, UnicodeError) as problem:  # TimeoutError is an OSError
            raise Unreachable(type(problem).__name__) from problem

    async def _send(self, transport: httpx2.AsyncHTTPTransport, request: httpx2.Request) -> httpx2.Response:
        problem: Exception | None = None
        host = request.url.raw_host.decode("ascii")
        for address in await addresses_of(host, self.private_networks):
            try:
                return await transport.handle_async_request(_pinned(request, host, address))
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as failed:
                problem = failed
        raise Unreachable("none of its addresses answers") from problem


async def chunks_of(response: httpx2.Response, max_bytes: int) -> AsyncIterator[bytes]:
    """The body's bytes as they were sent. The data of a host that compresses uninvited is not decompressed.

    Raises:
        Unreachable: there are more than `max_bytes`.
    """
    num_bytes = 0
    async for chunk in response.aiter_raw():
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise Unreachable(f"more than {max_bytes} bytes")
        yield chunk


def _pinned(request: httpx2.Request, host: str, address: str) -> httpx2.Request:
    """The same request to an address, with its Host header and the name that TLS verifies."""
    return httpx2.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions={"sni_hostname": host, "timeout": {"connect": CONNECT_TIMEOUT_S}},
    )


def _transport() -> httpx2.AsyncHTTPTransport:
    # No connection is kept alive: one verified for a name must not serve another name at the same address.
    limits = httpx2.Limits(max_keepalive_connections=0)
    return httpx2.AsyncHTTPTransport(verify=tls_context(), trust_env=False, limits=limits)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """The system's certificate authorities. Loaded once, since that takes some 30 ms."""
    return httpx2.create_ssl_context(trust_env=False)
