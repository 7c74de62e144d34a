"""One mutated picture, through base64, the decoder and the resizing that every upload passes."""

import base64
import random

from PIL import Image

from serve_app.edits.images import decode_base64, prepare, read_picture
from serve_app.errors import InvalidInput
from tests.fuzz import bytewise, containers
from tests.fuzz.limits import MAX_REFUSAL_BYTES, SETTINGS
from tests.fuzz.seeds import bulky_pictures, pictures

_WRAPPERS = ("{}", "{}", "data:image/png;base64,{}", " data:;charset=x;base64,{}\n")

BULKY_SHARE = 0.01
"""So that many small files are read in the time; each large one takes a hundred times as long."""


def make(dice: random.Random) -> bytes:
    """A picture as a client would send it in base64, mutated."""
    seeds = list(pictures().values())
    data = dice.choice(list(bulky_pictures().values()) if dice.random() < BULKY_SHARE else seeds)
    share = dice.random()
    if share < 0.6:
        data = containers.mutated(dice, data, seeds)
    if share > 0.4:
        data = bytewise.mutated(dice, data, seeds)
    text = dice.choice(_WRAPPERS).format(base64.b64encode(data).decode()).encode()
    return bytewise.mutated(dice, text, seeds, most=1) if dice.random() < 0.05 else text


def run(given: bytes) -> bool:
    """Whether the picture was taken.

    Raises:
        Exception: anything but a refusal.
        AssertionError: it was taken as something that it must not be.
    """
    limits = SETTINGS.limits
    try:
        data = decode_base64(given.decode("latin-1"), "image", limits.max_picture_bytes)
        picture = read_picture(data, "image", limits)
    except InvalidInput as refusal:
        return _refused(refusal)
    assert type(picture) is Image.Image
    assert (picture.mode, picture.info) == ("RGB", {})
    assert picture.width * picture.height <= limits.max_picture_px
    prepared = prepare(picture, SETTINGS.sizes)
    assert prepared.vae_pixels.shape[2] == prepared.condition_pixels.shape[2] == 3
    return True


def _refused(refusal: InvalidInput) -> bool:
    assert refusal.field == "image"
    assert len(refusal.message) < MAX_REFUSAL_BYTES
    return False
