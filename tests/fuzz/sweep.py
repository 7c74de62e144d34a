"""Send each file of a folder through a decoder process, as an upload, and compare with Pillow: `python -m
tests.fuzz.sweep FOLDER`, for example on the pictures of Pillow's own tests (Tests/images of its source distribution).

A file that Pillow reads must be accepted, or be refused because of a documented limit: its kind, its bytes, its size,
its shape, its number of parts, or the time that it takes. All kinds that `limits.picture_kinds` can name are accepted.
Exit status 1 if a file was refused otherwise, or ended a decoder process.
"""

import argparse
import logging
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import get_args

from PIL import Image
from rich.console import Console

from serve_app.config import LimitSettings, PictureKind, SizeSettings
from serve_app.edits.picture_files import kind_of
from serve_app.errors import InvalidInput
from serve_app.ingress.pictures.decode_worker import StoredPicture
from serve_app.ingress.pictures.decoders import Decoder

LIMITS = LimitSettings(picture_kinds=get_args(PictureKind))

REASONS = {
    "which is not accepted": "kind",
    "is not a picture": "kind",
    "is larger than": "bytes",
    "too many pixels": "size",
    "pixels. Send a picture of at most": "size",
    "too long and narrow": "shape",
    "has more than": "parts",
    "to decode": "time",
    "is damaged or truncated": "damage",
    "cannot be decoded": "crash",
}
"""By a part of the refusal's message."""


def reason_of(refusal: str) -> str:
    """Which of `REASONS`, or the message itself."""
    return next((reason for part, reason in REASONS.items() if part in refusal), refusal)


def verdict(decoder: Decoder, data: bytes) -> str:
    """`accepted`, or the reason of the refusal."""
    try:
        decoder.decode([StoredPicture("image", data)], LIMITS, SizeSettings())
    except InvalidInput as refusal:
        return reason_of(refusal.message)
    return "accepted"


def format_for_pillow(file: Path) -> str | None:
    """The name of the format that Pillow reads this file as, whole; None if it cannot."""
    try:
        with Image.open(file) as picture:
            picture.load()
            return picture.format
    except Exception:
        return None


def problem(verdict: str, data: bytes, pillows_format: str | None) -> str | None:
    """What is wrong with a verdict, or None."""
    if verdict == "crash" or verdict not in {"accepted", *REASONS.values()}:
        return verdict
    if pillows_format is not None and verdict == "damage":
        return f"Pillow reads it as {pillows_format}, and it was refused as damaged"
    if pillows_format is not None and verdict == "kind" and pillows_format.lower() in get_args(PictureKind):
        return f"Pillow reads it as {pillows_format}, and its kind was not recognised ({kind_of(data)})"
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.sweep", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    warnings.simplefilter("ignore")
    verdicts, wrong, console = Counter[tuple[str, bool]](), [], Console()
    decoder = Decoder()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = file.read_bytes()
        pillows_format = format_for_pillow(file)
        found = verdict(decoder, data)
        verdicts[found, pillows_format is not None] += 1
        if (message := problem(found, data, pillows_format)) is not None:
            wrong.append(f"{file.relative_to(folder)}: {message}")
    decoder.close()
    for (found, is_read), number in verdicts.most_common():
        suffix = "" if is_read else ", and Pillow does not read them"
        console.print(
            f"{number:5d} {found if found == 'accepted' else f'refused for: {found}'}{suffix}", highlight=False
        )
    for line in wrong:
        console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # here, since a test calls main() in its own process
    sys.exit(main())
