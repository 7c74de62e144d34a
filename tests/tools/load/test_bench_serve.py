"""The command against this service's application, and its requests against other servers of both dialects."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serve_app.cli import main
from serve_app.config import AppSettings
from serve_app.errors import Overloaded
from serve_app.tools.load import run as load_run
from serve_app.tools.load.dialects import DIALECTS, Answer
from serve_app.tools.load.load import arrival_times, closed_loop
from serve_app.tools.load.mix import EditKind, edits_of
from tests.processes import free_port
from tests.tools.edit.running import RunningService, running_service

PICTURE = "cGljdHVyZQ=="
RATE, SECONDS = 20.0, 0.5


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A mix of small edits."""
    file = tmp_path / "small.yaml"
    file.write_text("- {size: 64x64}\n")
    return str(file)


@pytest.fixture
def service(tmp_path: Path, tiny_settings: AppSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningService]:
    monkeypatch.setenv("CAMERA_EDIT_API_KEY", "one")
    with running_service(tmp_path, tiny_settings, "one") as service:
        yield service


def bench(url: str, *options: str) -> int:
    """An open loop, whose number of requests does not depend on the machine's speed."""
    return main(["bench", "serve", url, "--rate", str(RATE), "--seconds", str(SECONDS), *options, "--json"])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_edit_is_sent_and_counted(
    service: RunningService, dialect: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mix = tmp_path / "mix.yaml"
    mix.write_text("- {size: 96x64, references: 2, num_inference_steps: 5, views: 2, rewrite_prompt: true}\n")
    assert bench(service.url, "--dialect", dialect, "--mix", str(mix), "--warm-up", "0.2", "--slo", "500") == 0
    figures = json.loads(capsys.readouterr().out)
    times = list(takewhile(lambda due_s: due_s < SECONDS + 0.2, arrival_times(RATE, 0)))
    assert figures["num_requests"] == sum(due_s >= 0.2 for due_s in times)
    assert figures["num_warm_up"] == sum(due_s < 0.2 for due_s in times)
    assert (figures["errors"], figures["within_slo"]) == ({}, 1.0)
    assert figures["latency_s"].keys() == {"p50", "p95", "p99", "mean"}
    edits = sorted(service.editor.requests, key=lambda edit: edit.sampling.seed)
    assert [edit.sampling.seed for edit in edits] == list(range(len(times)))
    assert {(edit.size.final.width, edit.size.final.height, edit.sampling.num_inference_steps) for edit in edits} == {
        (96, 64, 5)
    }
    assert len(service.rewriter.jobs) == len(times)


def test_previews_of_a_stream_are_timed(
    service: RunningService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mix = tmp_path / "mix.yaml"
    mix.write_text("- {size: 64x64, previews: 2}\n")
    assert bench(service.url, "--dialect", "openai", "--mix", str(mix), "--warm-up", "0") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["first_preview_s"]["p50"] > 0
    assert {edit.num_previews for edit in service.editor.requests} == {2}


def test_errors_are_counted_by_kind(service: RunningService, small: str, capsys: pytest.CaptureFixture[str]) -> None:
    service.editor.problem = Overloaded("Too many.")
    assert bench(service.url, "--dialect", "openai", "--mix", small, "--warm-up", "0") == 1
    figures = json.loads(capsys.readouterr().out)
    assert figures["errors"] == {"HTTP 429": figures["num_requests"]}
    assert figures["latency_s"] is None
    assert bench(service.url, "--mix", small, "--key", "wrong", "--warm-up", "0") == 1
    assert list(json.loads(capsys.readouterr().out)["errors"]) == ["HTTP 401"]


def test_the_figures_are_printed(service: RunningService, small: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--rate", "20", "--seconds", "0.5", "--warm-up", "0", "--slo", "2.5", "--mix", small]
    assert main(["bench", "serve", service.url, *options]) == 0
    output = capsys.readouterr().out
    assert "answered per second" in output
    assert "within 2.5 s" in output


@pytest.mark.parametrize(
    "wrong",
    [
        ["--clients", "0"],
        ["--clients", "-" + "9" * 400],
        ["--rate", "-1"],
        ["--rate", "nan"],
        ["--clients", "1", "--warm-up", "-1"],
    ],
    ids=lambda wrong: wrong[-2],
)
def test_impossible_loads_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "serve", "http://127.0.0.1:9", *wrong])
    assert ended.value.code == 2
    assert wrong[-2] in capsys.readouterr().err


def test_without_a_server_no_load_is_sent(
    small: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_run, "measure", lambda options, mix, connection: pytest.fail("the load was sent"))
    url = f"http://127.0.0.1:{free_port()}"
    assert bench(url, "--mix", small) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"camera-edit: No service answers at {url} (ConnectError(")


class _Foreign(BaseHTTPRequestHandler):
    """Another server: it has only the edits of OpenAI's dialect."""

    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps({"data": [{"b64_json": PICTURE}]}).encode()
        self.send_response(200 if self.path == "/v1/images/edits" else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(("dialect", "status"), [("openai", 0), ("runpod", 1)])
def test_any_answer_of_another_server_counts(
    dialect: str, status: int, small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Foreign) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            assert bench(url, "--dialect", dialect, "--mix", small, "--warm-up", "0") == status
        finally:
            server.shutdown()
            thread.join()
    figures = json.loads(capsys.readouterr().out)
    assert figures["errors"] == ({"HTTP 404": figures["num_requests"]} if status else {})


def test_a_closed_loop_over_http(service: RunningService) -> None:
    async def run() -> list[str | None]:
        headers = {"authorization": "Bearer one"}
        async with httpx2.AsyncClient(base_url=service.url, headers=headers, timeout=60) as http:
            edits = edits_of((EditKind(size="64x64"),), 0)
            make = lambda _: DIALECTS["runpod"](http, next(edits))  # noqa: E731
            return [each.error for each in await closed_loop(make, 2, lambda number: number < 6)]

    assert asyncio.run(run()) == [None] * 6


Answers = dict[str, list[Any]]
"""By method and path, in order: JSON, a text, or a status."""


def ask(dialect: str, answers: Answers, kind: EditKind, base: str = "http://other") -> Answer:
    """Send one edit to a server that has these answers, all of which must be used."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        found = answers[f"{request.method} {request.url.path}"].pop(0)
        if isinstance(found, int):
            return httpx2.Response(found)
        return httpx2.Response(200, text=found) if isinstance(found, str) else httpx2.Response(200, json=found)

    async def run() -> Answer:
        async with httpx2.AsyncClient(base_url=base, transport=httpx2.MockTransport(answer)) as http:
            (edit,) = islice(edits_of((kind,), 0), 1)
            return await DIALECTS[dialect](http, edit)()

    done = asyncio.run(run())
    assert not any(answers.values())
    return done


def test_a_job_that_never_runs_is_an_error_in_time() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"id": "1", "status": "IN_QUEUE"})

    async def run() -> Answer:
        transport = httpx2.MockTransport(answer)
        async with httpx2.AsyncClient(base_url="http://other", transport=transport, timeout=0.5) as http:
            (edit,) = islice(edits_of((EditKind(size="64x64"),), 0), 1)
            return await DIALECTS["runpod"](http, edit)()

    assert asyncio.run(run()).error == "no answer in time"


PLAIN, STREAMED = EditKind(size="64x64"), EditKind(size="64x64", previews=1)
EDITS = "POST /v1/images/edits"


def event(**fields: Any) -> str:
    return f"event: x\ndata: {json.dumps(fields)}\n\n"


def test_a_runpod_endpoint_that_returns_early_is_polled() -> None:
    answers: Answers = {
        "POST /v2/x/runsync": [{"id": "a", "status": "IN_QUEUE"}],
        "GET /v2/x/status/a": [
            {"id": "a", "status": "IN_PROGRESS"},
            {"id": "a", "status": "COMPLETED", "output": {"image": "x"}},
        ],
    }
    assert ask("runpod", answers, PLAIN, "http://other/v2/x") == Answer()


@pytest.mark.parametrize("status", ["FAILED", "TIMED_OUT", "CANCELLED"])
def test_a_job_without_a_picture_has_failed(status: str) -> None:
    assert ask("runpod", {"POST /runsync": [{"id": "a", "status": status}]}, PLAIN) == Answer(f"job {status}")


def test_a_job_that_says_nothing_has_failed() -> None:
    bodies: list[Any] = [{"id": "a", "status": "COMPLETED"}, {"error": "x"}, []]
    for body in bodies:
        assert ask("runpod", {"POST /runsync": [body]}, PLAIN) == Answer("no picture in the answer")


@pytest.mark.parametrize(
    ("news", "has_preview"),
    [
        ([{"type": "progress", "step": 1}, {"type": "image", "image": PICTURE}], False),
        ([{"type": "progress", "step": 1, "preview": PICTURE}, {"type": "image", "image": PICTURE}], True),
        (["another server's preview"], True),
    ],
)
def test_the_previews_of_a_job_come_from_its_stream(news: list[Any], has_preview: bool) -> None:
    stream = [{"status": "IN_PROGRESS", "stream": [{"output": item}]} for item in news]
    answers: Answers = {
        "POST /run": [{"id": "a", "status": "IN_QUEUE"}],
        "GET /stream/a": [{"status": "IN_PROGRESS", "stream": []}, *stream, {"status": "COMPLETED", "stream": []}],
    }
    answer = ask("runpod", answers, STREAMED)
    assert answer.error is None
    assert (answer.first_preview_at is not None) == has_preview


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"data": [{"b64_json": PICTURE}]}, None),
        ({"data": [{"url": "http://other/1.png"}]}, None),
        ({"data": [{}]}, "no picture in the answer"),
        ({"data": []}, "no picture in the answer"),
        ("busy", "no picture in the answer"),
        (503, "HTTP 503"),
    ],
)
def test_what_an_openai_server_answers(body: Any, error: str | None) -> None:
    assert ask("openai", {EDITS: [body]}, PLAIN) == Answer(error)
    assert ask("openai", {EDITS: [body]}, PLAIN, "http://other/v1") == Answer(error)


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ([event(type="image_edit.completed", b64_json=PICTURE), "data: [DONE]\n\n"], None),
        ([event(error={"message": "x"})], "error in the stream"),
        ([event(type="image_edit.partial_image")], "the stream ended early"),
        (503, "HTTP 503"),
    ],
)
def test_how_a_stream_ends(events: Any, error: str | None) -> None:
    body = "".join(events) if isinstance(events, list) else events
    assert ask("openai", {EDITS: [body]}, STREAMED) == Answer(error)


def test_a_broken_connection_is_an_error_of_its_kind() -> None:
    def refuse(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused", request=request)

    async def run() -> Answer:
        async with httpx2.AsyncClient(base_url="http://other", transport=httpx2.MockTransport(refuse)) as http:
            (edit,) = islice(edits_of((PLAIN,), 0), 1)
            return await DIALECTS["openai"](http, edit)()

    assert asyncio.run(run()) == Answer("ConnectError")
