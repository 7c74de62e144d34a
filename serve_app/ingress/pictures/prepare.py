"""From a parsed request to edits with prepared pictures. No other module fetches or decodes untrusted bytes."""

import asyncio
from dataclasses import dataclass

from serve_app.config import AppSettings, FetchSettings, LimitSettings
from serve_app.edits.request import EditOptions, EditRequest, Pictures
from serve_app.edits.service import all_or_none
from serve_app.edits.sizes import OutputSize, Size, output_size
from serve_app.errors import InvalidInput
from serve_app.ingress.auth import CLIENT
from serve_app.ingress.pictures.decode_worker import StoredPicture
from serve_app.ingress.pictures.decoders import DecoderPool
from serve_app.net.outbound import Outbound, Unreachable, chunks_of

MAX_FETCHES, MAX_FETCHES_PER_REQUEST = 16, 4
"""At once, of a replica and of one request. Further ones wait."""

_FETCH_HEADERS = {"accept-encoding": "identity", "user-agent": "qwen-camera-edit"}


@dataclass(frozen=True)
class PictureSource:
    """A picture and the field it came in: a file's bytes, or text that is base64, a data URL or an http(s) URL."""

    field: str
    content: bytes | str

    @property
    def url(self) -> str | None:
        """The URL to fetch it from, or None."""
        is_url = isinstance(self.content, str) and self.content[:8].lower().startswith(("http://", "https://"))
        return str(self.content) if is_url else None


@dataclass(frozen=True)
class ParsedRequest:
    """All edits of a request, in terms of neither dialect; its pictures are not decoded yet.

    Attributes:
        picture_sets: each set is decoded once.
        pictures_of: for each edit, the index of its set of pictures.
        width: as requested; None: it follows from the height, the first picture and the configured area.
        height: likewise.
        side_fields: the dialect's names for width and height.
        timeout_s: seconds from the request's arrival until it is cancelled; None: no limit.
    """

    picture_sets: tuple[tuple[PictureSource, ...], ...]
    edits: tuple[EditOptions, ...]
    pictures_of: tuple[int, ...]
    width: int | None
    height: int | None
    side_fields: tuple[str, str]
    timeout_s: float | None = None


@dataclass(frozen=True)
class Prepared:
    """Edits, their sets of pictures, and for each edit the index of its set."""

    edits: tuple[EditRequest, ...]
    pictures: tuple[Pictures, ...]
    pictures_of: tuple[int, ...]


class Preparer:
    """Fetches pictures, and has them decoded in other processes."""

    def __init__(self, settings: AppSettings, decoders: DecoderPool) -> None:
        self._sizes = settings.sizes
        self._limits = settings.limits
        self._fetcher = Fetcher(settings.fetch, settings.limits.max_picture_bytes)
        self._decoders = decoders

    async def __call__(self, request_id: str, parsed: ParsedRequest) -> Prepared:
        """Decode each set of pictures once, and compute each edit's size.

        Raises:
            InvalidInput: a picture cannot be read or fetched, or the output would be too large.
        """
        allowance = FetchAllowance(self._limits.max_body_bytes)
        decoded = await all_or_none(self._decode_set(sources, allowance) for sources in parsed.picture_sets)
        edits = []
        for index, (edit, set_index) in enumerate(zip(parsed.edits, parsed.pictures_of, strict=True)):
            _, first = decoded[set_index]
            size = output_size(parsed.width, parsed.height, first, self._sizes)
            check_output_size(size, self._limits, parsed.side_fields)
            name = request_id if len(parsed.edits) == 1 else f"{request_id}/{index}"
            edits.append(EditRequest(**vars(edit), request_id=name, size=size, client=CLIENT.get()))
        return Prepared(tuple(edits), tuple(pictures for pictures, _ in decoded), parsed.pictures_of)

    async def _decode_set(
        self, sources: tuple[PictureSource, ...], allowance: "FetchAllowance"
    ) -> tuple[Pictures, Size]:
        """Pictures at the model's sizes, and the first one's own size."""
        stored = await all_or_none(self._stored(source, allowance) for source in sources)
        decoded = await self._decoders.decode(CLIENT.get(), stored, self._limits, self._sizes)
        return tuple(picture for picture, _ in decoded), decoded[0][1]

    async def _stored(self, source: PictureSource, allowance: "FetchAllowance") -> StoredPicture:
        if source.url is None:
            return StoredPicture(source.field, source.content)
        return StoredPicture(source.field, await self._fetcher(source.url, source.field, allowance))


class FetchAllowance:
    """What one request may fetch.

    Args:
        max_bytes: of all its pictures together.

    Attributes:
        places: hold one during a fetch.
    """

    def __init__(self, max_bytes: int) -> None:
        self.places = asyncio.Semaphore(MAX_FETCHES_PER_REQUEST)
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def take(self, num_bytes: int, field: str) -> None:
        """
        Raises:
            InvalidInput: the request has no such number of bytes left.
        """
        self._num_bytes += num_bytes
        if self._num_bytes > self._max_bytes:
            raise InvalidInput(
                f"{field} exceeds the {self._max_bytes / 2**20:.4g} MiB that the fetched pictures of a request may "
                "have together. Send smaller files, or fewer in a request.",
                field,
            )


class Fetcher:
    """Fetches files of at most `max_bytes` from the configured origins, without redirects or proxies. The settings'
    timeout bounds the whole fetch."""

    def __init__(self, settings: FetchSettings, max_bytes: int) -> None:
        self._outbound = Outbound(settings.origins, settings.private_networks, settings.timeout_s)
        self._max_bytes = max_bytes
        self._places = asyncio.Semaphore(MAX_FETCHES)

    async def __call__(self, url: str, field: str, allowance: FetchAllowance) -> bytes:
        """The file at the URL.

        Raises:
            InvalidInput: the request's allowance is used up; or the URL's origin is not allowed, or the fetch failed.
                The message does not say which of the last two, or clients could map the network with it.
        """
        try:
            async with allowance.places, self._places:
                return await self._fetch(url, field, allowance)
        except Unreachable:
            raise InvalidInput(
                f"{field} could not be fetched, or is a URL that this server may not fetch. Send the picture itself, "
                "as a file or in base64.",
                field,
            ) from None

    async def _fetch(self, url: str, field: str, allowance: FetchAllowance) -> bytes:
        data = bytearray()
        async with self._outbound.exchange("GET", url, _FETCH_HEADERS) as response:
            if response.status_code != 200:
                raise Unreachable(f"status {response.status_code}")
            async for chunk in chunks_of(response, self._max_bytes):
                data += chunk
                allowance.take(len(chunk), field)
        return bytes(data)


def check_output_size(size: OutputSize, limits: LimitSettings, side_fields: tuple[str, str]) -> None:
    """Check a side that follows from the other one and the picture's aspect.

    Raises:
        InvalidInput: the side is too large; naming its field.
    """
    for field, side_px in zip(side_fields, (size.final.width, size.final.height), strict=True):
        if side_px > limits.max_side_px:
            raise InvalidInput(
                f"{field} would be {side_px} pixels with this picture's aspect; at most {limits.max_side_px} are "
                "allowed. Ask for a smaller picture, or give both width and height.",
                field,
            )
