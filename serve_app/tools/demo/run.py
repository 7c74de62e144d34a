"""Runs the demo: starts the service, edits in each mode over HTTP, shows the results, stops the service."""

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
    "The tiny weights know only a toy world: a photograph takes the same path, but the result is meaningless. "
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
    """The command's options. `image`: the first picture, a toy scene if None; `port`: a free one if None."""

    image: Path | None
    out: Path
    keep: bool
    port: int | None


@dataclass(frozen=True)
class ModeResult:
    """A mode that ran: its response and the files of the pictures."""

    mode: Mode
    answer: Answer
    files: tuple[Path, ...]


def run_demo(options: DemoOptions) -> None:
    """Run the demo and write its files to `options.out`, the output of the libraries to `service.log` among them.

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
        reporter.print_line(NOTICE, style="yellow")
        with running(config.serve, port, reporter) as url:
            results = [_run_mode(mode, url, inputs, options.out, reporter) for mode in MODES]
            _write_sheet(results, inputs, options.out, reporter)
            if options.keep:
                _wait_for_ctrl_c(url, reporter)
            else:
                reporter.print_line("The curl lines work while the service runs: camera-edit demo --keep")
        reporter.print_line(NOTICE, style="yellow")


def _write_inputs(options: DemoOptions, settings: AppSettings) -> tuple[Path, ...]:
    pictures = demo_pictures(options.image, settings.limits)
    options.out.mkdir(parents=True, exist_ok=True)
    files = tuple(options.out / f"input-{number}.png" for number in range(1, len(pictures) + 1))
    for picture, file in zip(pictures, files, strict=True):
        file.write_bytes(encode_png(picture))
    return files


def _run_mode(mode: Mode, url: str, inputs: Sequence[Path], out: Path, reporter: Reporter) -> ModeResult:
    payload_file = out / f"{mode.name}.json"
    payload = mode.payload([file.read_bytes() for file in inputs])
    payload_file.write_text(json.dumps(payload), encoding="utf-8")
    with reporter.step(f"{mode.title}: editing", f"{mode.title}: edited"):
        answer = send(url, payload)
    files = write_pictures(answer.pictures, out, mode.name)
    reporter.print_line(f"  files: {', '.join(str(file) for file in files)}")
    for line in rewriting_lines(answer):
        reporter.print_line(f"  {line}")
    reporter.print_line(f"  {curl_line(url, payload_file)}", style="cyan")
    return ModeResult(mode, answer, files)


def write_pictures(pictures: Sequence[bytes], out: Path, name: str) -> tuple[Path, ...]:
    """Write each picture unchanged: NAME.png, or NAME-1.png and so on if there are several."""
    names = [name] if len(pictures) == 1 else [f"{name}-{number}" for number in range(1, len(pictures) + 1)]
    files = tuple(out / f"{each}.png" for each in names)
    for file, picture in zip(files, pictures, strict=True):
        file.write_bytes(picture)
    return files


def rewriting_lines(answer: Answer) -> list[str]:
    """For each prompt that the rewriter got: its result, or why there is none."""
    return [
        f"not rewritten, it ran as it was: {entry.get('reason')}"
        if entry.get("rewritten") is None
        else f"rewritten as: {entry['rewritten']}"
        for entry in answer.rewrites
    ]


def curl_line(url: str, payload_file: Path) -> str:
    """A shell command that sends the payload again and writes the pictures to again-1.png and so on."""
    data = shlex.quote(f"@{payload_file}")
    return f"curl -s {url}/runsync -H 'Content-Type: application/json' -d {data} | python3 -c \"{_DECODE}\""


def _write_sheet(results: Sequence[ModeResult], inputs: Sequence[Path], out: Path, reporter: Reporter) -> None:
    file = out / SHEET_NAME
    contact_sheet([card(each, inputs) for each in results], "camera-edit demo", NOTICE).save(file)
    reporter.print_line(f"Contact sheet: {file}")


def card(result: ModeResult, inputs: Sequence[Path]) -> Card:
    """The contact sheet's card for a mode; a picture that was sent twice is shown once."""
    mode, answer = result.mode, result.answer
    rewriting = [textwrap.shorten(line, _MAX_NOTE_CHARS, placeholder="…") for line in rewriting_lines(answer)]
    return Card(
        title=mode.title,
        time=f"{answer.elapsed_s:.1f} s",
        notes=(*mode.notes, *rewriting),
        inputs=tuple(
            Captioned(read_answer_picture(inputs[index]), f"picture {index + 1}") for index in sorted({*mode.pictures})
        ),
        outputs=tuple(
            Captioned(read_answer_picture(file), caption)
            for file, caption in zip(result.files, mode.captions, strict=True)
        ),
    )


def read_answer_picture(file: Path) -> Image.Image:
    """Decode a picture of the demo.

    Raises:
        EditFailed: the server sent something else.
    """
    try:
        return Image.open(BytesIO(file.read_bytes())).convert("RGB")
    except UnidentifiedImageError as problem:
        raise EditFailed(f"{file} is not a picture, although the server returned it as one.") from problem


def _wait_for_ctrl_c(url: str, reporter: Reporter) -> None:
    reporter.print_line()
    reporter.print_line(
        f"Try your own edits at {url}/ in a browser ({url}/docs describes the API). Ctrl-C ends it.", style="bold"
    )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        reporter.print_line()
