"""The plain server that the service is compared with, and the comparison's arithmetic."""

import asyncio
import base64
import io
from dataclasses import replace
from itertools import islice

import httpx2
import pytest
from PIL import Image

from serve_app.config import AppSettings
from serve_app.editor.loading.load import load_pipeline
from serve_app.tools.bench.contenders import stock_pipeline
from serve_app.tools.connection import Connection
from serve_app.tools.load.arguments import LoadOptions
from serve_app.tools.load.dialects import DIALECTS, Answer
from serve_app.tools.load.mix import EditKind, Mix, edits_of
from serve_app.tools.load.report import Figures, Quantiles
from tests.benchmarks import stock
from tests.benchmarks.stock import Turn, missed, ratios
from tests.benchmarks.stock_server import build_app


def test_the_plain_server_answers_the_loads_requests(tiny_settings: AppSettings) -> None:
    bodies: list[bytes] = []

    async def keep(response: httpx2.Response) -> None:
        bodies.append(await response.aread())

    async def run() -> list[Answer]:
        pipeline = load_pipeline(tiny_settings.editor)
        with stock_pipeline(pipeline, tiny_settings.editor, tiny_settings.sizes):
            transport = httpx2.ASGITransport(build_app(pipeline))
            hooks = {"response": [keep]}
            client = httpx2.AsyncClient(base_url="http://stock", transport=transport, event_hooks=hooks, timeout=300)
            async with client as http:
                kind = EditKind(size="64x96", num_inference_steps=1)
                sends = [DIALECTS["openai"](http, edit) for edit in islice(edits_of((kind,), 0), 2)]
                return list(await asyncio.gather(*(send() for send in sends)))

    assert asyncio.run(run()) == [Answer(), Answer()]
    pictures = [base64.b64decode(httpx2.Response(200, content=body).json()["data"][0]["b64_json"]) for body in bodies]
    assert [Image.open(io.BytesIO(picture)).size for picture in pictures] == [(64, 96)] * 2
    assert pictures[0] != pictures[1]


def turn(server: str, per_s: float, p95: float, p50: float, errors: dict[str, int] | None = None) -> Turn:
    many = Figures(0, 9, per_s, Quantiles(p95 / 2, p95, p95, p95), None, None, errors or {})
    return Turn(server, {16: many, 1: replace(many, latency_s=Quantiles(p50, p50, p50, p50), errors={})})


def test_the_ratios_are_of_medians_and_the_targets_have_directions() -> None:
    plain = [turn("stock", per_s, 10.0, 1.0) for per_s in (1.0, 2.0, 9.0)]
    found = [*plain, *(turn("service", per_s, 2.0, 0.5) for per_s in (8.0, 8.0, 1.0))]
    measured = ratios(found)
    assert measured == {"throughput": 4.0, "p95": 0.2, "p50 of one client": 0.5}
    assert missed(found, measured) == []
    worse = [*plain, turn("service", 7.9, 3.1, 0.6, {"HTTP 429": 2})]
    assert missed(worse, ratios(worse)) == [
        "service, 16 clients: {'HTTP 429': 2}",
        "throughput: 3.95 times, 4 wanted",
        "p95: 0.31 times, 0.3 wanted",
        "p50 of one client: 0.60 times, 0.5 wanted",
    ]


def test_a_server_without_a_success_cannot_be_compared() -> None:
    empty = Figures(0, 1, 0.0, None, None, None, {"HTTP 500": 1})
    with pytest.raises(RuntimeError, match="stock answered no edit of 16 clients"):
        ratios([Turn("stock", {16: empty, 1: empty}), turn("service", 1.0, 1.0, 1.0)])


def test_a_time_in_which_no_edit_ends_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: list[float] = []
    one = Figures(0, 1, 0.1, Quantiles(9.0, 9.0, 9.0, 9.0), None, None, {})

    def measure(options: LoadOptions, mix: Mix, connection: Connection) -> Figures:
        seconds.append(options.seconds)
        return replace(one, requests_per_s=0.0) if len(seconds) < 3 else one

    monkeypatch.setattr(stock, "measure", measure)
    assert stock.load("http://stock", 1, 3.0, 0.0, 0) == one
    assert seconds == [3.0, 6.0, 12.0]
