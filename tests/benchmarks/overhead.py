"""Measure what the service does around the engine: `python -m tests.benchmarks.overhead [--edits 60] [--output FILE]`

The service runs without its model (`tests.benchmarks.no_engine`), on edits of a photograph of 1024 x 1024 pixels, PNG
and JPEG, in both dialects. The table has the CPU time of each of its processes per edit, less what they take when idle.
Pillow's decoding, resizing and encoding and base64 of the same picture are timed in this process, before and after.
Exit status 1: a request failed, or an edit takes more beyond that sum than half of the sum for PNG.
"""

import argparse
import asyncio
import base64
import io
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

from serve_app.tools.load.dialects import Answer, Send
from serve_app.tools.load.load import closed_loop
from tests.pictures import photograph
from tests.service.conftest import host_in
from tests.service.load import errors_of

SIDE_PX, CONDITION_PX = 1024, 384
SIZES = {"output_area_px": SIDE_PX**2, "vae_area_px": SIDE_PX**2, "condition_area_px": CONDITION_PX**2}
FORMATS: dict[str, dict[str, int]] = {"png": {"compress_level": 1}, "jpeg": {"quality": 95, "subsampling": 0}}
"""Pillow's options. Its default for PNG takes four times as long."""
DIALECTS = ("runpod", "openai")
TIMINGS = 10
KEY = "overhead-of-one-edit"
"""HAProxy listens on all interfaces, so the service asks for a key."""
MAX_PART = 0.5
"""Of Pillow's sum for PNG, the service's CPU time beyond Pillow's."""

PROCESSES = {
    "decode_worker": "decoders",
    "ServeReplica:camera-edit:Ingress": "ingress",
    "ServeReplica:camera-edit:Jobs": "jobs",
    "ServeReplica:camera-edit:Editor": "editor",
    "ProxyActor": "proxy",
    "haproxy": "haproxy",
    "raylet": "raylet",
    "gcs_server": "GCS",
    "ServeController": "controller",
}
"""Names by a part of the command line. All others are Ray's agents and monitors."""


@dataclass(frozen=True)
class Pillow:
    """Seconds of CPU time for one picture."""

    decode: float
    resize: float
    encode: float
    base64: float

    @property
    def sum(self) -> float:
        return self.decode + self.resize + self.encode + self.base64


@dataclass(frozen=True)
class Cost:
    """Of edits of one format in one dialect, CPU seconds per edit by process."""

    dialect: str
    format: str
    processes: dict[str, float]
    pillow: Pillow

    @property
    def beyond(self) -> float:
        return sum(self.processes.values()) - self.pillow.sum


def cpu_s(call: Callable[[], object]) -> float:
    """Median CPU time of a call in seconds."""
    times = []
    for _ in range(TIMINGS):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return median(times)


def pillow_costs(kind: str) -> Pillow:
    """Of one edit: decode its picture, resize it to the model's two sizes, encode the same pixels; base64 of one
    picture in and one out."""
    data = file_of(kind)
    picture = Image.open(io.BytesIO(data))
    picture.load()
    pixels, text = np.asarray(picture), base64.b64encode(data)

    def resize() -> None:
        for side in (SIDE_PX, CONDITION_PX):
            np.array(picture.resize((side, side), Image.Resampling.LANCZOS))

    return Pillow(
        decode=cpu_s(lambda: Image.open(io.BytesIO(data)).convert("RGB")),
        resize=cpu_s(resize),
        encode=cpu_s(lambda: Image.fromarray(pixels).save(io.BytesIO(), kind, **FORMATS[kind])),
        base64=cpu_s(lambda: (base64.b64decode(text), base64.b64encode(data).decode("ascii"))),
    )


def file_of(kind: str) -> bytes:
    file, size = io.BytesIO(), (SIDE_PX, SIDE_PX)
    picture = photograph("astronaut").resize(size, Image.Resampling.LANCZOS)
    picture.save(file, kind, **FORMATS[kind])
    return file.getvalue()


def make(http: httpx2.AsyncClient, dialect: str, kind: str) -> Send:
    """An edit of the photograph, in and out in this format."""
    data, fields = file_of(kind), {"prompt": "x", "num_inference_steps": 1, "output_format": kind}
    if dialect == "openai":
        files = {"image": (f"picture.{kind}", data, f"image/{kind}")}
        form = {name: str(value) for name, value in fields.items()}
        request = partial(http.post, "/v1/images/edits", data=form, files=files)
    else:
        body = {"input": {**fields, "image": base64.b64encode(data).decode("ascii")}}
        content, headers = json.dumps(body).encode(), {"content-type": "application/json"}
        request = partial(http.post, "/runsync", content=content, headers=headers)

    async def send() -> Answer:
        response = await request()
        is_drawn = response.status_code == 200 and (dialect == "openai" or response.json()["status"] == "COMPLETED")
        return Answer(None if is_drawn else f"HTTP {response.status_code}: {response.text[:200]}")

    return send


async def send_edits(url: str, dialect: str, kind: str, number: int, num_clients: int) -> None:
    """
    Raises:
        RuntimeError: an edit failed.
    """
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=120, trust_env=False) as http:
        send = make(http, dialect, kind)
        errors = errors_of(await closed_loop(lambda _: send, num_clients, lambda sent: sent < number))
    if errors:
        raise RuntimeError(f"edits failed: {dict(errors)}")


def cpu_times(root_pid: int) -> dict[str, float]:
    """CPU seconds, user and system, of the service's processes since their start."""
    root = psutil.Process(root_pid)
    times: dict[str, float] = defaultdict(float)
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            name = next((name for part, name in PROCESSES.items() if part in command), "Ray's others")
            used = process.cpu_times()
            times[name] += used.user + used.system
    return times


def measure(url: str, pid: int, num_edits: int, num_clients: int) -> list[Cost]:
    costs = []
    for dialect, kind in product(DIALECTS, FORMATS):
        run = partial(send_edits, url, dialect, kind, num_clients=num_clients)
        asyncio.run(run(number=2 * num_clients))  # the first ones import, connect and fill caches
        pillow = pillow_costs(kind)
        before, began = cpu_times(pid), time.monotonic()
        asyncio.run(run(number=num_edits))
        after, took_s = cpu_times(pid), time.monotonic() - began
        time.sleep(took_s)
        later = cpu_times(pid)
        processes = {name: (2 * after[name] - before[name] - later[name]) / num_edits for name in after}
        again = pillow_costs(kind)
        mean = Pillow(
            *((one + other) / 2 for one, other in zip(asdict(pillow).values(), asdict(again).values(), strict=True))
        )
        costs.append(Cost(dialect, kind, processes, mean))
    return costs


def table_of(costs: list[Cost]) -> Table:
    """Milliseconds of CPU time per edit."""
    table = Table("CPU ms per edit", *(f"{each.dialect} {each.format}" for each in costs))
    for column in table.columns[1:]:
        column.justify = "right"
    names = sorted({name for each in costs for name in each.processes})
    for name in names:
        table.add_row(name, *(f"{1000 * each.processes.get(name, 0):.1f}" for each in costs))
    table.add_section()
    table.add_row("all", *(f"{1000 * sum(each.processes.values()):.1f}" for each in costs))
    for name in asdict(costs[0].pillow):
        table.add_row(f"Pillow: {name}", *(f"{1000 * getattr(each.pillow, name):.1f}" for each in costs))
    table.add_row("beyond Pillow", *(f"{1000 * each.beyond:.1f}" for each in costs))
    table.add_row("of Pillow's sum for PNG", *(f"{each.beyond / png_sum(costs):.2f}" for each in costs))
    return table


def png_sum(costs: list[Cost]) -> float:
    return median(each.pillow.sum for each in costs if each.format == "png")


def too_much(costs: list[Cost]) -> list[str]:
    """The edits that take too much beyond Pillow's part."""
    return [f"{each.dialect} {each.format}" for each in costs if each.beyond > MAX_PART * png_sum(costs)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--edits", type=int, default=60, help="of each format in each dialect")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--haproxy", action="store_true", help="behind HAProxy instead of Serve's proxy")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {"CAMERA_EDIT_API_KEYS": KEY} | ({"RAY_SERVE_ENABLE_HA_PROXY": "1"} if options.haproxy else {})
        settings: dict[str, Any] = {"sizes": SIZES, "rewriter": None}
        settings["jobs"] = {"store": {"kind": "sqlite", "path": f"{folder}/jobs.sqlite3"}}
        host = host_in(
            Path(folder), None, environment=environment, key=KEY, build="tests.benchmarks.no_engine:build", **settings
        )
        try:
            host.start()
            costs = measure(host.service.url, host.process.pid, options.edits, options.clients)
        finally:
            host.stop()
    console = Console(width=120)
    console.print(table_of(costs))
    if options.output is not None:
        options.output.write_text(json.dumps([asdict(each) for each in costs], indent=1) + "\n")
    for each in too_much(costs):
        console.print(f"MISSED: {each}: more than {MAX_PART:g} of Pillow's sum for PNG")
    return int(bool(too_much(costs)))


if __name__ == "__main__":
    sys.exit(main())
