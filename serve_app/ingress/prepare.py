"""From a parsed request to edits with prepared pictures: the one place where untrusted bytes are decoded."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from serve_app.config import AppSettings, LimitSettings
from serve_app.edits.images import decode_base64, prepare, read_picture
from serve_app.edits.request import EditRequest, Pictures
from serve_app.edits.service import all_or_none
from serve_app.edits.sizes import OutputSize, Size, output_size
from serve_app.errors import InvalidInput
from serve_app.ingress.asked import ParsedRequest, PictureSource
from serve_app.ingress.fetch import Fetcher


@dataclass(frozen=True)
class Prepared:
    """Edits, their sets of pictures, and for each edit the index of its set."""

    edits: tuple[EditRequest, ...]
    pictures: tuple[Pictures, ...]
    pictures_of: tuple[int, ...]


class Preparer:
    """Decodes on a few threads of its own: each decode may hold a whole photograph."""

    def __init__(self, settings: AppSettings) -> None:
        self._sizes = settings.sizes
        self._limits = settings.limits
        self._fetcher = Fetcher(settings.fetch, settings.limits.max_picture_bytes)
        self._threads = ThreadPoolExecutor(settings.limits.num_decode_threads, thread_name_prefix="decode")

    async def __call__(self, request_id: str, parsed: ParsedRequest) -> Prepared:
        """Decode each set of pictures once, and settle each edit's size.

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

    async def _decode_set(self, given: tuple[PictureSource, ...]) -> tuple[Pictures, Size]:
        whole = await all_or_none(self._fetched(picture) for picture in given)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, whole)

    async def _fetched(self, picture: PictureSource) -> PictureSource:
        if isinstance(picture.content, bytes) or not picture.content.lower().startswith(("http://", "https://")):
            return picture
        return replace(picture, content=await self._fetcher(picture.content, picture.field))

    def _decode(self, given: list[PictureSource]) -> tuple[Pictures, Size]:
        """Pictures at the model's sizes, and the first one's own size. Runs on a decoder thread."""
        opened = [read_picture(self._bytes(picture), picture.field, self._limits) for picture in given]
        return tuple(prepare(picture, self._sizes) for picture in opened), Size(*opened[0].size)

    def _bytes(self, picture: PictureSource) -> bytes:
        most = self._limits.max_picture_bytes
        if isinstance(picture.content, str):
            return decode_base64(picture.content, picture.field, most)
        if len(picture.content) > most:
            raise InvalidInput(
                f"{picture.field} is larger than {most / 2**20:.4g} MiB. Send a smaller file.", picture.field
            )
        return picture.content


def check_output_size(size: OutputSize, limits: LimitSettings, side_fields: tuple[str, str]) -> None:
    """Refuse a side that follows from the other one and the picture's aspect, and is out of bounds.

    Raises:
        InvalidInput: naming the side's field.
    """
    for field, side_px in zip(side_fields, (size.final.width, size.final.height), strict=True):
        if side_px > limits.max_side_px:
            raise InvalidInput(
                f"{field} would be {side_px} pixels with this picture's aspect; at most {limits.max_side_px} are "
                "allowed. Ask for a smaller picture, or give both width and height.",
                field,
            )
