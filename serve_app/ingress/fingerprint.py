"""Fingerprints of requests: equal for requests that ask for the same edits, however they were encoded."""

import hashlib
from collections.abc import Iterable

from serve_app.edits.images import decode_base64
from serve_app.ingress.asked import PictureSource


def fingerprint_of(fields: str, pictures: Iterable[PictureSource], max_picture_bytes: int) -> str:
    """A hex digest. Hashes all bytes of the pictures: not on an event loop.

    Args:
        fields: the request without its pictures, as canonical JSON.
        pictures: hashed as bytes, so that neither the encoding of base64 nor its line breaks count; a URL as its text.

    Raises:
        InvalidInput: a picture is no valid base64, or too large.
    """
    digest = hashlib.sha256(fields.encode())
    for picture in pictures:
        content = picture.content
        if isinstance(content, str):
            is_url = content.lower().startswith(("http://", "https://"))
            content = content.encode() if is_url else decode_base64(content, picture.field, max_picture_bytes)
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
