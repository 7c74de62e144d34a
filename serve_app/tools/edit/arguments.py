"""The options of `camera-edit edit`. Imports nothing heavy, since `--help` reads them."""

import argparse
import re
from dataclasses import dataclass, fields
from pathlib import Path

from serve_app.tools.numbers import above_0, at_least_1, number

# The bounds that every service has; those that its operator sets are left to the service.
_finite = number(float, "a finite number", lambda value: True)
_seed = number(int, "a whole number of at least 0, or -1 for a random one", lambda value: value >= -1)
_quality = number(int, "a whole number from 1 to 100", lambda value: 1 <= value <= 100)
_SIZE = re.compile(r"[1-9][0-9]{0,8}[x*][1-9][0-9]{0,8}|auto")

DEFAULT_NAME = "{stem}{pose}"
ORBIT = 8

URL_HELP = "default: $CAMERA_EDIT_URL, or url in ~/.config/camera-edit/config.toml, or http://127.0.0.1:8000"
HELP = "edit pictures with a running service: files, folders, lists of prompts, orbits"
EXAMPLES = (
    'camera-edit edit photo.jpg --prompt "Make it sunset"',
    "camera-edit edit photos --azimuth 45 --azimuth 315 --out views",
    "camera-edit edit photo.jpg --orbit 4 --elevation 30 --animate gif --out orbit",
    "camera-edit edit --list prompts.csv --format jpeg --json",
    'camera-edit edit photo.jpg --prompt "Make it night" --lora woodcut=0.8',
    'camera-edit edit room.jpg --with style.jpg --prompt "Draw picture 1 in the style of picture 2"',
)


@dataclass(frozen=True)
class EditArguments:
    """The command's options as they are written; `add_edit_arguments` describes them."""

    pictures: list[str]
    list_file: Path | None
    prompt: str | None
    references: list[Path]
    azimuth: list[float]
    elevation: list[float]
    distance: list[float]
    orbit: int | None
    animate: str | None
    loras: list[dict[str, object]]
    rewrite: bool
    seed: int | None
    steps: int | None
    size: str | None
    output_format: str
    quality: int | None
    out: Path
    name: str
    overwrite: bool
    url: str | None
    key: str | None
    jobs: int
    timeout: float
    json: bool

    @classmethod
    def of(cls, namespace: argparse.Namespace) -> "EditArguments":
        return cls(**{field.name: getattr(namespace, field.name) for field in fields(cls)})


def add_edit_arguments(edit: argparse.ArgumentParser) -> None:
    """Add the options of `EditArguments`."""
    _add_pictures(edit.add_argument_group("pictures"))
    _add_camera(edit.add_argument_group("camera; each option may be repeated, for one picture per combination"))
    _add_edit(edit.add_argument_group("edit"))
    _add_output(edit.add_argument_group("output"))
    _add_service(edit.add_argument_group("service"))


def _add_pictures(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "pictures",
        nargs="*",
        metavar="PICTURE",
        help="a file, a folder of files, a pattern such as '*.jpg', or - (stdin)",
    )
    group.add_argument("--prompt", metavar="TEXT", help="the instruction; may be absent beside a camera option")
    group.add_argument(
        "--list",
        dest="list_file",
        type=Path,
        metavar="FILE",
        help="CSV with the columns file and prompt, or JSONL with these fields",
    )
    group.add_argument(
        "--with",
        dest="references",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="another picture that the prompt may refer to; may be repeated",
    )


def _add_camera(group: argparse._ArgumentGroup) -> None:
    for name, text in (
        ("azimuth", "degrees around the subject: 0 front, 90 right, 180 back, 270 left"),
        ("elevation", "degrees: -30 from below, 0 eye level, 30, 60 from above"),
        ("distance", "0.6 close-up, 1 medium, 1.8 wide"),
    ):
        group.add_argument(f"--{name}", type=_finite, action="append", default=[], metavar=name[0].upper(), help=text)
    group.add_argument(
        "--orbit",
        type=_num_views,
        nargs="?",
        const=ORBIT,
        metavar="N",
        help=f"N views around the subject, 1 to {ORBIT} (without N: {ORBIT}); write the pictures before it",
    )
    group.add_argument("--animate", choices=("gif", "webp"), help="also write each orbit as one animation")


def _num_views(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= ORBIT:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of views from 1 to {ORBIT}. Write the pictures before --orbit."
        )
    return int(text)


def _add_edit(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--lora",
        dest="loras",
        type=_lora,
        action="append",
        default=[],
        metavar="NAME[=WEIGHT]",
        help="an adapter that the service offers, see GET /v1/adapters; default weight: the service's. May be repeated",
    )
    group.add_argument("--rewrite", action="store_true", help="let the service make a vague instruction precise")
    group.add_argument(
        "--seed",
        type=_seed,
        metavar="N",
        help="default: the service's, 42; -1: a random one (with --overwrite: anew)",
    )
    group.add_argument("--steps", type=at_least_1, metavar="N", help="default: the service's, 4")
    group.add_argument(
        "--size", type=_size, metavar="WxH", help="such as 1024x1024; default: as the picture, about a megapixel"
    )


def _size(text: str) -> str:
    if _SIZE.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT in pixels, such as 1024x1024")
    return text


def _lora(text: str) -> dict[str, object]:
    name, separator, weight = text.partition("=")
    try:
        return {"name": name, "weight": _finite(weight)} if separator else {"name": name}
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME or NAME=WEIGHT, such as woodcut=0.8") from None


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", type=Path, metavar="DIR", default=Path("edited"), help="default: edited")
    group.add_argument(
        "--name",
        metavar="PATTERN",
        default=DEFAULT_NAME,
        help="of the output files, without their ending: {stem}, {name} and {index} of the picture, {pose}, {azimuth}, "
        "{elevation}, {distance} of the camera (default: {stem}{pose})",
    )
    group.add_argument(
        "--format", dest="output_format", choices=("png", "jpeg", "webp"), default="png", help="default: png"
    )
    group.add_argument(
        "--quality", type=_quality, metavar="N", help="1 to 100, of JPEG and WebP; default: the service's, 95"
    )
    group.add_argument("--overwrite", action="store_true", help="replace files that were made with other settings")
    group.add_argument("--json", action="store_true", help="print one JSON document at the end instead of the summary")


def _add_service(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--url", help=URL_HELP)
    group.add_argument(
        "--key", help="API key; default: $CAMERA_EDIT_API_KEY, or key in the same file. Others can read a command line"
    )
    group.add_argument(
        "--jobs", type=_num_jobs, metavar="N", default=4, help="pictures at once with the service (default: 4)"
    )
    group.add_argument(
        "--timeout", type=above_0, metavar="S", default=1800.0, help="seconds to wait for one picture (default: 1800)"
    )


def _num_jobs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 64")
    return int(text)
