"""Pictures by URL, from the origins that the operator named and from nowhere else."""

from serve_app.config import FetchSettings
from serve_app.errors import InvalidInput
from serve_app.net.outbound import Outbound, Unreachable

_HEADERS = {"accept-encoding": "identity", "user-agent": "qwen-camera-edit"}


class Fetcher:
    """Fetches files of at most `max_bytes`, whole within the settings' timeout, without redirects or proxies."""

    def __init__(self, settings: FetchSettings, max_bytes: int) -> None:
        self._outbound = Outbound(settings.origins, settings.private_networks, settings.timeout_s)
        self._max_bytes = max_bytes

    async def __call__(self, url: str, field: str) -> bytes:
        """The file behind the URL.

        Raises:
            InvalidInput: the URL's origin is not one of those allowed, or it could not be fetched. Which of the two,
                and why, is not told: the answer would map the network for whoever asks.
        """
        try:
            return await self._fetch(url)
        except Unreachable as problem:
            raise InvalidInput(
                f"{field} could not be fetched, or is a URL that this server may not fetch. Send the picture itself, "
                "as a file or in base64.",
                field,
            ) from problem

    async def _fetch(self, url: str) -> bytes:
        data = bytearray()
        async with self._outbound.exchange("GET", url, _HEADERS) as response:
            if response.status_code != 200:
                raise Unreachable(f"status {response.status_code}")
            # Raw: what a host packs in spite of the header is no picture, and nothing here has to unpack it.
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > self._max_bytes:
                    raise Unreachable(f"more than {self._max_bytes} bytes")
        return bytes(data)
