"""From a parsed request to edits with prepared pictures. No other module fetches or decodes untrusted bytes."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from serve_app.config import AppSettings, FetchSettings, LimitSettings
from serve_app.edits.images import decode_base64, prepare, read_picture
from serve_app.edits.request import EditOptions, EditRequest, Pictures
from serve_app.edits.service import all_or_none
from serve_app.edits.sizes import OutputSize, Size, output_size
from serve_app.errors import InvalidInput
from serve_app.net.outbound import Outbound, Unreachable

_FETCH_HEADERS = {"accept-encoding": "identity", "user-agent": "qwen-camera-edit"}


@dataclass(frozen=True)
class PictureSource:
    """A picture and the field it came in: a file's bytes, or text that is base64, a data URL or an http(s) URL."""

    field: str
    content: bytes | str

    @property
    def url(self) -> str | None:
        """The URL to fetch it from, or None."""
        is_url = isinstance(self.content, str) and self.content.lower().startswith(("http://", "https://"))
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
    """Decodes on a few threads of its own, since each decode may hold a whole photograph."""

    def __init__(self, settings: AppSettings) -> None:
        self._sizes = settings.sizes
        self._limits = settings.limits
        self._fetcher = Fetcher(settings.fetch, settings.limits.max_picture_bytes)
        self._threads = ThreadPoolExecutor(settings.limits.num_decode_threads, thread_name_prefix="decode")

    async def __call__(self, request_id: str, parsed: ParsedRequest) -> Prepared:
        """Decode each set of pictures once, and compute each edit's size.

        Raises:
            InvalidInput: a picture cannot be read or fetched, or the output would be too large.
        """
        decoded = await all_or_none(self._decode_set(sources) for sources in parsed.picture_sets)
        edits = []
        for index, (edit, set_index) in enumerate(zip(parsed.edits, parsed.pictures_of, strict=True)):
            _, first = decoded[set_index]
            size = output_size(parsed.width, parsed.height, first, self._sizes)
            check_output_size(size, self._limits, parsed.side_fields)
            name = request_id if len(parsed.edits) == 1 else f"{request_id}/{index}"
            edits.append(EditRequest(**vars(edit), request_id=name, size=size))
        return Prepared(tuple(edits), tuple(pictures for pictures, _ in decoded), parsed.pictures_of)

    async def _decode_set(self, sources: tuple[PictureSource, ...]) -> tuple[Pictures, Size]:
        fetched = await all_or_none(self._fetched(source) for source in sources)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, fetched)

    async def _fetched(self, source: PictureSource) -> PictureSource:
        if source.url is None:
            return source
        return replace(source, content=await self._fetcher(source.url, source.field))

    def _decode(self, sources: list[PictureSource]) -> tuple[Pictures, Size]:
        """Pictures at the model's sizes, and the first one's own size. Runs on a decoder thread."""
        opened = [read_picture(self._bytes(source), source.field, self._limits) for source in sources]
        return tuple(prepare(picture, self._sizes) for picture in opened), Size(*opened[0].size)

    def _bytes(self, source: PictureSource) -> bytes:
        most = self._limits.max_picture_bytes
        if isinstance(source.content, str):
            return decode_base64(source.content, source.field, most)
        if len(source.content) > most:
            raise InvalidInput(
                f"{source.field} is larger than {most / 2**20:.4g} MiB. Send a smaller file.", source.field
            )
        return source.content


class Fetcher:
    """Fetches files of at most `max_bytes` from the configured origins, without redirects or proxies. The settings'
    timeout bounds the whole fetch."""

    def __init__(self, settings: FetchSettings, max_bytes: int) -> None:
        self._outbound = Outbound(settings.origins, settings.private_networks, settings.timeout_s)
        self._max_bytes = max_bytes

    async def __call__(self, url: str, field: str) -> bytes:
        """The file at the URL.

        Raises:
            InvalidInput: the URL's origin is not allowed, or the fetch failed. The message does not say which, or
                clients could map the network with it.
        """
        try:
            return await self._fetch(url)
        except Unreachable:
            raise InvalidInput(
                f"{field} could not be fetched, or is a URL that this server may not fetch. Send the picture itself, "
                "as a file or in base64.",
                field,
            ) from None

    async def _fetch(self, url: str) -> bytes:
        data = bytearray()
        async with self._outbound.exchange("GET", url, _FETCH_HEADERS) as response:
            if response.status_code != 200:
                raise Unreachable(f"status {response.status_code}")
            # Raw: a host that compresses in spite of the header does not get its data decompressed here.
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > self._max_bytes:
                    raise Unreachable(f"more than {self._max_bytes} bytes")
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
