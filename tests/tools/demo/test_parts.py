"""The demo's smaller parts: answers, curl lines, terminal and the reason of a failed start."""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from PIL import Image
from rich.console import Console

from serve_app.errors import EditFailed, ServiceUnavailable
from serve_app.tools.demo.client import Answer, read_answer, send
from serve_app.tools.demo.environment import prepare_environment
from serve_app.tools.demo.modes import Mode
from serve_app.tools.demo.run import ModeResult, card, curl_line, read_answer_picture, rewriting_lines, write_pictures
from serve_app.tools.demo.server import choose_port
from serve_app.tools.demo.terminal import Reporter
from tests.conftest import ROOT

PICTURES = (b"first", b"second")
DIVERT = """
import os, sys
from pathlib import Path
from serve_app.tools.demo.terminal import diverted_output
print("before")
with diverted_output(Path(sys.argv[1])) as terminal:
    os.write(1, b"noise ")
    os.write(2, b"and more\\n")
    print("printed")
    print("ours", file=terminal)
print("after")
with diverted_output(Path(os.devnull)):
    raise KeyError("shown on the terminal")
"""


def envelope(**fields: Any) -> dict[str, Any]:
    """A RunPod envelope of a completed job with two pictures, but for `fields`."""
    output = {
        "images": [base64.b64encode(picture).decode() for picture in PICTURES],
        "seed": 42,
        "final_prompts": ["one", "two"],
        "rewritten_log": [],
    }
    times = {"delayTime": 1, "executionTime": 2, "workerId": "w"}
    return {"id": "sync-1", "status": "COMPLETED", "output": output, **times, **fields}


@contextmanager
def answering(status: int, body: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Run a server that sends this response to every POST; yields its URL and the list of JSON bodies it received."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()
            thread.join()


def test_completed_job_gives_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.5])
    monkeypatch.setattr("serve_app.tools.demo.client.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with answering(200, envelope()) as (url, received):
        answer = send(url, {"input": {"prompt": "x"}})
    assert answer == Answer(PICTURES, ("one", "two"), (), 2.5)
    assert received == [{"input": {"prompt": "x"}}]


def test_refusal_is_reported_with_the_servers_message() -> None:
    with pytest.raises(EditFailed, match=r"answered 400: .*prompt is too long"):
        read_answer(httpx2.Response(400, json={"error": "prompt is too long"}), 1.0)


def test_failed_job_is_reported_with_the_servers_message() -> None:
    failed = envelope(status="FAILED", output=None, error="the model said no")
    with pytest.raises(EditFailed, match="ended as FAILED: the model said no"):
        read_answer(httpx2.Response(200, json=failed), 1.0)


def test_no_answer_is_reported() -> None:
    url = f"http://127.0.0.1:{choose_port(None)}"
    with pytest.raises(ServiceUnavailable, match=f"{url} gave no answer"):
        send(url, {})


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_line_sends_the_payload_and_writes_the_pictures(tmp_path: Path) -> None:
    payload = tmp_path / "a folder" / "batch.json"
    payload.parent.mkdir()
    payload.write_text('{"input": {"prompt": "x"}}')
    with answering(200, envelope()) as (url, received):
        subprocess.run(["bash", "-c", curl_line(url, payload)], cwd=tmp_path, check=True, timeout=30)
    assert received == [{"input": {"prompt": "x"}}]
    assert [(tmp_path / f"again-{number}.png").read_bytes() for number in (1, 2)] == list(PICTURES)


def test_pictures_are_numbered_where_there_are_several(tmp_path: Path) -> None:
    assert write_pictures([b"1"], tmp_path, "camera") == (tmp_path / "camera.png",)
    several = write_pictures([b"1", b"2"], tmp_path, "batch")
    assert {file.name: file.read_bytes() for file in several} == {"batch-1.png": b"1", "batch-2.png": b"2"}


def test_answer_that_is_no_picture_fails(tmp_path: Path) -> None:
    file = tmp_path / "camera.png"
    file.write_bytes(b"no picture")
    with pytest.raises(EditFailed, match="is not a picture"):
        read_answer_picture(file)


def test_rewriting_is_reported_with_its_result_or_its_reason() -> None:
    log = ({"prompt": "a", "rewritten": "a red barn"}, {"prompt": "b", "rewritten": None, "reason": "no JSON"})
    assert rewriting_lines(Answer((), (), log, 0.0)) == [
        "rewritten as: a red barn",
        "not rewritten, it ran as it was: no JSON",
    ]
    assert rewriting_lines(Answer((), (), (), 0.0)) == []


def test_card_shows_each_picture_once_and_what_came_back_under_its_caption(tmp_path: Path) -> None:
    mode = Mode("batch", "Batch", (0, 0, 1), {}, ("a note",), ("one", "two", "three"))
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for number, file in enumerate(files):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
    log = ({"prompt": "a", "rewritten": "x " * 200},)
    shown = card(ModeResult(mode, Answer((), (), log, 1.26), tuple(files[2:])), files[:2])
    assert (shown.title, shown.time) == ("Batch", "1.3 s")
    assert [(each.caption, each.picture.getpixel((0, 0))) for each in shown.inputs] == [
        ("picture 1", (0, 0, 0)),
        ("picture 2", (1, 0, 0)),
    ]
    assert [(each.caption, each.picture.getpixel((0, 0))) for each in shown.outputs] == [
        ("one", (2, 0, 0)),
        ("two", (3, 0, 0)),
        ("three", (4, 0, 0)),
    ]
    note, rewriting = shown.notes
    assert note == "a note"
    assert rewriting.startswith("rewritten as: x x")
    assert len(rewriting) <= 120


def test_chosen_port_is_free() -> None:
    port = choose_port(None)
    with socket.create_server(("127.0.0.1", port)):
        pass
    assert choose_port(port) == port


def test_diverted_output_keeps_the_terminal_for_us(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    # In a process of its own: pytest's sys.stdout is not file descriptor 1.
    run = subprocess.run([sys.executable, "-c", DIVERT, log], cwd=ROOT, capture_output=True, text=True)
    assert log.read_text() == "noise and more\nprinted\n"
    assert run.stdout == "before\nours\nafter\n"
    assert [line for line in run.stderr.splitlines() if not line.startswith(" ")] == [
        "Traceback (most recent call last):",
        "KeyError: 'shown on the terminal'",
    ]


def test_reporter_leaves_one_line_for_a_step_and_none_for_a_failed_one() -> None:
    file = StringIO()
    reporter = Reporter(Console(file=file))
    with reporter.step("Loading", "Loaded") as show_status:
        show_status("half way")
    with pytest.raises(KeyError), reporter.step("Breaking", "Broken"):
        raise KeyError
    assert re.fullmatch(r"Loaded \(\d+\.\d s\)\n", file.getvalue())


def test_reporter_shows_on_a_terminal_what_the_step_is_at() -> None:
    file = StringIO()
    with Reporter(Console(file=file, force_terminal=True)).step("Loading", "Loaded") as show_status:
        show_status("Editor STARTING")
    assert "Loading: Editor STARTING" in file.getvalue()


def test_reporter_neither_wraps_nor_interprets_a_line() -> None:
    file = StringIO()
    line = f"[bold]{'x ' * 200}[/bold]"
    Reporter(Console(file=file, width=40)).print_line(line)
    assert file.getvalue() == f"{line}\n"


def test_environment_forgets_other_clusters_and_keeps_the_users_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("API_KEYS", "API_KEYS_FILE", "OPERATOR_KEYS", "OPERATOR_KEYS_FILE")
    others = {"RAY_ADDRESS": "10.1.2.3:6379", **{f"CAMERA_EDIT_{name}": "x" for name in keys}}
    monkeypatch.setattr(os, "environ", {**others, "RAY_USAGE_STATS_ENABLED": "1"})
    prepare_environment()
    assert not others.keys() & os.environ.keys()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] == "0"
