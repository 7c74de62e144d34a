"""HTTP requests to hosts outside, which a client of ours may choose among those that the operator allowed."""

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
"""For one address of a host; after that the next one is tried, within the deadline of the whole."""


class Unreachable(Exception):
    """There is no answer to be had from that URL. The message is for our logs: it would map the network for whoever
    reads it."""


@dataclass(frozen=True)
class Outbound:
    """Sends requests without redirects, proxies, cookies, or anything else from the environment.

    A host's name is resolved once, and an address that was checked is dialled, so that no second answer can differ;
    TLS verifies the host by its name.

    Args:
        origins: where requests may go, as `origin_of` writes them.
        private_networks: where the hosts of these origins may lie apart from public addresses.
        timeout_s: for the whole of an exchange, the names' resolution and the answer's last byte included.
    """

    origins: tuple[str, ...]
    private_networks: tuple[Network, ...]
    timeout_s: float

    @asynccontextmanager
    async def exchange(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None = None
    ) -> AsyncIterator[httpx2.Response]:
        """The answer, its body still to be read.

        Raises:
            Unreachable: from here or, while the body is read, from inside the `async with` block.
        """
        if origin_of(url) not in self.origins:
            raise Unreachable("the origin is not allowed")
        request = httpx2.Request(method, url, headers=headers, content=content)
        try:
            async with asyncio.timeout(self.timeout_s), _wire() as wire:
                response = await self._answer(wire, request)
                try:
                    yield response
                finally:
                    await response.aclose()
        except (httpx2.HTTPError, OSError, UnicodeError) as problem:  # TimeoutError is an OSError
            raise Unreachable(type(problem).__name__) from problem

    async def _answer(self, wire: httpx2.AsyncHTTPTransport, request: httpx2.Request) -> httpx2.Response:
        problem: Exception | None = None
        host = request.url.raw_host.decode("ascii")
        for address in await addresses_of(host, self.private_networks):
            try:
                return await wire.handle_async_request(_pinned(request, host, address))
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as failed:
                problem = failed
        raise Unreachable("none of its addresses answers") from problem


def _pinned(request: httpx2.Request, host: str, address: str) -> httpx2.Request:
    """The same request to an address; its Host header and the name that TLS verifies stay."""
    return httpx2.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions={"sni_hostname": host, "timeout": {"connect": CONNECT_TIMEOUT_S}},
    )


def _wire() -> httpx2.AsyncHTTPTransport:
    # No connection is kept: one that was verified for a name must not serve another name at the same address.
    limits = httpx2.Limits(max_keepalive_connections=0)
    return httpx2.AsyncHTTPTransport(verify=tls_context(), trust_env=False, limits=limits)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """The system's certificate authorities. Loading them takes some 30 ms, so once."""
    return httpx2.create_ssl_context(trust_env=False)
