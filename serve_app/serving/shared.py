"""Prepared pictures in Ray's object store, where each deployment reads them."""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from serve_app.edits.request import Pictures, SharedPictures


@dataclass(frozen=True)
class PutPictures:
    """What SharedPictures are here.

    Attributes:
        reference: Ray resolves it only where it is an argument of its own.
        key: equal for equal pictures, for `PictureRouter`.
    """

    reference: Any
    key: str


def share(pictures: Pictures) -> SharedPictures:
    """Put pictures into the object store."""
    return SharedPictures(PutPictures(put(pictures), key_of(pictures)))


def put(pictures: Pictures) -> Any:
    """Put pictures into the object store; returns Ray's reference alone, for a deployment that shares them anew."""
    return ray.put(pictures)


def key_of(pictures: Pictures) -> str:
    """A checksum of every eighth row of the VAE's pixels. Two pictures of one key only go to the same replica."""
    checksum = 0
    for picture in pictures:
        checksum = zlib.crc32(np.ascontiguousarray(picture.vae_pixels[::8]).data, checksum)
    return f"{checksum:08x}"
