"""The demo's story: start the service, edit in each mode over HTTP, show what came of it, stop the service."""

import json
import shlex
import textwrap
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from rich.console import Console

from serve_app.config import AppSettings
from serve_app.errors import EditFailed
from serve_app.tools.demo.client import Answer, send
from serve_app.tools.demo.modes import MODES, Mode, demo_pictures, encode_png
from serve_app.tools.demo.server import choose_port, read_config, running
from serve_app.tools.demo.sheet import Captioned, Card, contact_sheet
from serve_app.tools.demo.terminal import Reporter, diverted_output

NOTICE = (
    "The tiny weights know a toy world alone: a photograph takes the same path, but comes back as nonsense. "
    "The real model needs a GPU."
)
SHEET_NAME = "contact-sheet.png"
LOG_NAME = "service.log"

_MAX_NOTE_CHARS = 120  # about four lines above the smallest card's pictures
_DECODE = (
    "import base64, json, sys; "
    "[open(f'again-{i}.png', 'wb').write(base64.b64decode(p)) "
    "for i, p in enumerate(json.load(sys.stdin)['output']['images'], 1)]"
)


@dataclass(frozen=True)
class DemoOptions:
    """What the user may choose. `image`: the first picture, a toy scene when None; `port`: a free one when None."""

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
        with running(config.serve, port, reporter) as url:
            shown = [_show_mode(mode, url, inputs, options.out, reporter) for mode in MODES]
            _write_sheet(shown, inputs, options.out, reporter)
            if options.keep:
                _wait_for_ctrl_c(url, reporter)
            else:
                reporter.say("The curl lines work while the service runs: camera-edit demo --keep")
        reporter.say(NOTICE, style="yellow")


def _write_inputs(options: DemoOptions, settings: AppSettings) -> tuple[Path, ...]:
    pictures = demo_pictures(options.image, settings.limits)
    options.out.mkdir(parents=True, exist_ok=True)
    files = tuple(options.out / f"input-{number}.png" for number in range(1, len(pictures) + 1))
    for picture, file in zip(pictures, files, strict=True):
        file.write_bytes(encode_png(picture))
    return files


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
    contact_sheet([card(each, inputs) for each in shown], "camera-edit demo", NOTICE).save(file)
    reporter.say(f"Contact sheet: {file}")


def card(shown: Shown, inputs: Sequence[Path]) -> Card:
    """What the contact sheet shows of a mode; a picture that was sent twice is shown once."""
    mode, answer = shown.mode, shown.answer
    rewriting = [textwrap.shorten(line, _MAX_NOTE_CHARS, placeholder="…") for line in rewriting_lines(answer)]
    return Card(
        title=mode.title,
        time=f"{answer.elapsed_s:.1f} s",
        notes=(*mode.notes, *rewriting),
        inputs=tuple(
            Captioned(read_answer_picture(inputs[place]), f"picture {place + 1}") for place in sorted({*mode.pictures})
        ),
        outputs=tuple(
            Captioned(read_answer_picture(file), caption)
            for file, caption in zip(shown.files, mode.captions, strict=True)
        ),
    )


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
