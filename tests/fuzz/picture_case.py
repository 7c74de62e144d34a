"""Runs one mutated picture through base64, the decoder and the resizing, as every upload."""

import base64
import random
import signal
from functools import cache

from PIL import Image

from serve_app.edits.containers import MAX_CHUNKS, MAX_METADATA_PARTS, MAX_SCANS, MAX_SEGMENTS
from serve_app.edits.images import decode_base64, prepare, read_picture
from serve_app.errors import InvalidInput
from serve_app.ingress.pictures.decode_worker import StoredPicture
from serve_app.ingress.pictures.decoders import Decoder
from tests.fuzz import bytewise, containers
from tests.fuzz.limits import MAX_REFUSAL_BYTES, SETTINGS
from tests.fuzz.seeds import bulky_heif_pictures, bulky_pictures, heif_pictures, pictures

_WRAPPERS = ("{}", "{}", "data:image/png;base64,{}", " data:;charset=x;base64,{}\n")

MAX_PARTS_BYTES = SETTINGS.limits.max_picture_bytes // 2
"""Of the repeated parts."""

_MAY_EXIT = {None, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGFPE}
"""Not with a Python exception, nor because a picture took too much time."""

BULKY_SHARE = 0.01
"""Low, since a large file takes a hundred times as long as a small one."""


def make(rng: random.Random) -> bytes:
    """A picture as a client would send it in base64, mutated."""
    return _make(rng, pictures(), bulky_pictures())


def make_heif(rng: random.Random) -> bytes:
    """The same of HEIC and AVIF files only."""
    return _make(rng, heif_pictures(), bulky_heif_pictures())


def _make(rng: random.Random, small: dict[str, bytes], bulky: dict[str, bytes]) -> bytes:
    seeds = list(small.values())
    data = rng.choice(list(bulky.values()) if rng.random() < BULKY_SHARE else seeds)
    share = rng.random()
    if share < 0.6:
        data = containers.mutated(rng, data, seeds)
    if share > 0.4:
        data = bytewise.mutated(rng, data, seeds)
    text = rng.choice(_WRAPPERS).format(base64.b64encode(data).decode()).encode()
    return bytewise.mutated(rng, text, seeds, most=1) if rng.random() < 0.05 else text


def make_of_many_parts(rng: random.Random) -> bytes:
    """A picture with one of its parts repeated around a limit of their number, sometimes mutated as well."""
    seeds = {name: data for name, data in pictures().items() if containers.split(data)}
    data = seeds[rng.choice(list(seeds))]
    chunks = containers.split(data)
    at = rng.randrange(len(chunks)) + 1
    if data.startswith(b"\xff\xd8") and rng.random() < 0.5:
        data = _with_scans(data, rng.choice((1, MAX_SCANS // 2, MAX_SCANS, 4000)))
    else:
        part = rng.choice((*chunks, containers.Chunk(chunks[-1].name, b"")))
        number = rng.choice((2, MAX_METADATA_PARTS, MAX_SEGMENTS, rng.choice((MAX_SEGMENTS, MAX_CHUNKS))))
        most = MAX_PARTS_BYTES // (len(part.body) + 16)
        data = containers.joined(data, [*chunks[:at], *[part] * min(number, most), *chunks[at:]])
    if rng.random() < 0.3:
        data = bytewise.mutated(rng, data, list(seeds.values()), most=2)
    return base64.b64encode(data)


def _with_scans(data: bytes, number: int) -> bytes:
    """The JPEG with so many empty scans before its end."""
    end = data.rfind(b"\xff\xd9")
    return data[:end] + b"\xff\xda\0\x08\1\1\0\1\x3f\0" * number + data[end:]


def run(payload: bytes) -> bool:
    """Whether the picture was accepted.

    Raises:
        Exception: anything but InvalidInput.
        AssertionError: it was decoded to an unexpected type, mode or size.
    """
    limits = SETTINGS.limits
    try:
        data = decode_base64(payload.decode("latin-1"), "image", limits.max_picture_bytes)
        picture = read_picture(data, "image", limits)
    except InvalidInput as refusal:
        return _refused(refusal)
    assert type(picture) is Image.Image
    assert (picture.mode, picture.info) == ("RGB", {})
    assert picture.width * picture.height <= limits.max_picture_px
    prepared = prepare(picture, SETTINGS.sizes)
    assert prepared.vae_pixels.shape[2] == prepared.condition_pixels.shape[2] == 3
    return True


@cache
def decoder() -> Decoder:
    """The process that decodes this process's HEIC and AVIF files. Libheif has faults that end it; a mutated file may
    reach one, and the service then refuses the picture."""
    return Decoder()


def crashed() -> bool:
    """Whether the last picture ended the process with a signal, as faults of C code do. Then another one is started."""
    code = decoder().exit_code
    if code is not None:
        decoder().revive()
    return code is not None and code < 0


def run_heif(payload: bytes) -> bool:
    """The same in a decoder process, as in the service."""
    limits = SETTINGS.limits
    try:
        picture = StoredPicture("image", payload.decode("latin-1"))
        ((prepared, size),) = decoder().decode([picture], limits, SETTINGS.sizes)
    except InvalidInput as refusal:
        if (code := decoder().exit_code) not in _MAY_EXIT:
            raise AssertionError(f"the decoder process ended with {code}") from refusal
        return _refused(refusal)
    assert size.width * size.height <= limits.max_picture_px
    assert prepared.vae_pixels.shape[2] == prepared.condition_pixels.shape[2] == 3
    return True


def _refused(refusal: InvalidInput) -> bool:
    assert refusal.field == "image"
    assert len(refusal.message) < MAX_REFUSAL_BYTES
    return False
