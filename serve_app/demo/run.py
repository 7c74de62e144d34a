"""The demo's story: start the service, edit in each mode over HTTP, show what came of it, stop the service."""

import json
import shlex
import textwrap
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from rich.console import Console

from serve_app.config import AppSettings, LimitSettings
from serve_app.demo.client import Answer, send
from serve_app.demo.modes import MODES, Mode
from serve_app.demo.pictures import MORNING, NIGHT, draw_scene, encode_png
from serve_app.demo.progress import Reporter
from serve_app.demo.server import choose_port, read_config, running
from serve_app.demo.sheet import Captioned, Row, contact_sheet
from serve_app.demo.terminal import diverted_output
from serve_app.edits.images import read_picture
from serve_app.errors import EditFailed
from serve_app.tiny.checkpoint import cached_checkpoint

NOTICE = (
    "The tiny weights are random and draw noise: these pictures mean nothing. The path that they took through the "
    "service is real."
)
SHEET_NAME = "contact-sheet.png"
LOG_NAME = "service.log"

_MAX_SIDE_PX = 1024  # of the user's picture: the tiny model sees far less, and the payload stays handy
_MAX_NOTE_CHARS = 120  # about three lines on the contact sheet
_DECODE = (
    "import base64, json, sys; "
    "[open(f'again-{i}.png', 'wb').write(base64.b64decode(p)) "
    "for i, p in enumerate(json.load(sys.stdin)['output']['images'], 1)]"
)


@dataclass(frozen=True)
class DemoOptions:
    """What the user may choose. `image`: the first picture, drawn when None; `port`: a free one when None."""

    image: Path | None
    out: Path
    keep: bool
    port: int | None


@dataclass(frozen=True)
class Shown:
    """A mode that ran: its answer and the files that its pictures were written to."""

    mode: Mode
    answer: Answer
    files: tuple[Path, ...]


def run_demo(options: DemoOptions) -> None:
    """Run the demo; its files lie in `options.out` afterwards, the libraries' own words in `service.log` among them.

    Raises:
        StartupError: the service did not start.
        ServiceError: a picture cannot be used, or an edit failed.
        OSError: a file cannot be read or written.
    """
    config = read_config()
    port = choose_port(options.port)
    inputs = _write_inputs(options, config.settings[0])
    with diverted_output(options.out / LOG_NAME) as terminal:
        reporter = Reporter(Console(file=terminal))
        reporter.say(NOTICE, style="yellow")
        _prepare_checkpoint(reporter)
        with running(config.serve, port, reporter) as url:
            shown = [_show_mode(mode, url, inputs, options.out, reporter) for mode in MODES]
            _write_sheet(shown, inputs, options.out, reporter)
            if options.keep:
                _wait_for_ctrl_c(url, reporter)
            else:
                reporter.say("The curl lines work while the service runs: camera-edit demo --keep")
        reporter.say(NOTICE, style="yellow")


def _write_inputs(options: DemoOptions, settings: AppSettings) -> tuple[Path, Path]:
    """The user's picture or a drawn one, and a drawn one of other colours and shape."""
    first = draw_scene(MORNING, 640, 480) if options.image is None else load_picture(options.image, settings.limits)
    options.out.mkdir(parents=True, exist_ok=True)
    files = options.out / "input-1.png", options.out / "input-2.png"
    for picture, file in zip((first, draw_scene(NIGHT, 512, 512)), files, strict=True):
        file.write_bytes(encode_png(picture))
    return files


def load_picture(path: Path, limits: LimitSettings) -> Image.Image:
    """The user's picture, upright, in RGB, and reduced where a side is above 1024 pixels.

    Raises:
        OSError: the file cannot be read.
        InvalidInput: it is not a whole PNG, JPEG or WebP file.
    """
    picture = read_picture(path.read_bytes(), str(path), limits)
    picture.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX), Image.Resampling.LANCZOS)
    return picture


def _prepare_checkpoint(reporter: Reporter) -> None:
    """Before Ray starts, so that its wait is not taken for the service's."""
    began = time.time()
    with reporter.step("Looking for the tiny checkpoint, building it if there is none", "Tiny checkpoint ready"):
        folder = cached_checkpoint()
    # A folder's time is that of its last new entry.
    how = "built just now" if folder.stat().st_mtime > began else "built by an earlier run"
    reporter.say(f"  {folder}, {how}")


def _show_mode(mode: Mode, url: str, inputs: Sequence[Path], out: Path, reporter: Reporter) -> Shown:
    payload_file = out / f"{mode.name}.json"
    payload = mode.payload([file.read_bytes() for file in inputs])
    payload_file.write_text(json.dumps(payload), encoding="utf-8")
    with reporter.step(f"{mode.title}: editing", f"{mode.title}: edited"):
        answer = send(url, payload)
    files = write_pictures(answer.pictures, out, mode.name)
    reporter.say(f"  files: {', '.join(str(file) for file in files)}")
    for line in rewriting_lines(answer):
        reporter.say(f"  {line}")
    reporter.say(f"  {curl_line(url, payload_file)}", style="cyan")
    return Shown(mode, answer, files)


def write_pictures(pictures: Sequence[bytes], out: Path, name: str) -> tuple[Path, ...]:
    """Write each picture as it came: NAME.png, or NAME-1.png and so on where there are several."""
    names = [name] if len(pictures) == 1 else [f"{name}-{number}" for number in range(1, len(pictures) + 1)]
    files = tuple(out / f"{each}.png" for each in names)
    for file, picture in zip(files, pictures, strict=True):
        file.write_bytes(picture)
    return files


def rewriting_lines(answer: Answer) -> list[str]:
    """For each prompt that was to be rewritten: what it became, or why it stayed."""
    return [
        f"not rewritten, it ran as it was: {entry.get('reason')}"
        if entry.get("rewritten") is None
        else f"rewritten as: {entry['rewritten']}"
        for entry in answer.rewrites
    ]


def curl_line(url: str, payload_file: Path) -> str:
    """A shell line that sends the payload again and writes the answer's pictures as again-1.png and so on."""
    data = shlex.quote(f"@{payload_file}")
    return f"curl -s {url}/runsync -H 'Content-Type: application/json' -d {data} | python3 -c \"{_DECODE}\""


def _write_sheet(shown: Sequence[Shown], inputs: Sequence[Path], out: Path, reporter: Reporter) -> None:
    file = out / SHEET_NAME
    contact_sheet([_row(each, inputs) for each in shown], "camera-edit demo", NOTICE).save(file)
    reporter.say(f"Contact sheet: {file}")


def _row(shown: Shown, inputs: Sequence[Path]) -> Row:
    rewriting = [textwrap.shorten(line, _MAX_NOTE_CHARS, placeholder="…") for line in rewriting_lines(shown.answer)]
    return Row(
        title=shown.mode.title,
        notes=(*shown.mode.notes, *rewriting, f"{shown.answer.elapsed_s:.1f} s"),
        inputs=tuple(_captioned(file) for file in inputs[: shown.mode.num_pictures]),
        outputs=tuple(_captioned(file) for file in shown.files),
    )


def _captioned(file: Path) -> Captioned:
    return Captioned(read_answer_picture(file), file.name)


def read_answer_picture(file: Path) -> Image.Image:
    """A picture of the demo, fully decoded.

    Raises:
        EditFailed: what the server sent is no picture.
    """
    try:
        return Image.open(BytesIO(file.read_bytes())).convert("RGB")
    except UnidentifiedImageError as problem:
        raise EditFailed(f"{file} is not a picture, but the server said that it is.") from problem


def _wait_for_ctrl_c(url: str, reporter: Reporter) -> None:
    reporter.say()
    reporter.say(f"Running at {url} ({url}/docs describes it). Ctrl-C ends it.", style="bold")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        reporter.say()
