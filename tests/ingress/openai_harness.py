"""The app behind OpenAI's routes without Ray: ports that answer at once, and calls as its clients make them."""

import asyncio
import atexit
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx2 import Response

from serve_app.config import AppSettings
from serve_app.edits.job import Job, JobCounts, JobEnd, JobNews, JobRecord, JobSpec, JobState, RepeatKey
from serve_app.edits.request import Pictures, SharedPictures
from serve_app.edits.service import EditService
from serve_app.errors import JobNotFound, RepeatKeyConflict, ServiceError
from serve_app.ingress.app import build_app
from serve_app.ingress.auth import Key, Keys
from serve_app.ingress.backend import Backend
from serve_app.ingress.pictures.decoders import DecoderPool
from serve_app.ingress.pictures.prepare import Preparer
from tests.fakes import FakeEditor, FakeRewriter
from tests.pictures import photograph, to_base64, to_png

EDITS = "/v1/images/edits"
PNG = to_png(photograph("astronaut", 64, 64))
DATA_URL = f"data:image/png;base64,{to_base64(photograph('astronaut', 64, 64))}"
WIDE = to_png(photograph("coffee", 90, 60))

Part = tuple[str, str | bytes]


@cache
def shared_decoders() -> DecoderPool:
    """One pool for all tests of this process: two decoder processes take longer to start than most tests."""
    pool = DecoderPool(1)
    atexit.register(pool.close)
    return pool


@dataclass
class FakeJobs:
    """A JobsPort that stores jobs and runs them when they are waited for.

    Attributes:
        ends: the state that every job ends in.
        problem: what the jobs that FAILED failed with.
        num_waits: how often `wait` returns an unfinished job first; None: it never returns.
    """

    service: EditService
    ends: JobState = JobState.COMPLETED
    problem: ServiceError | None = None
    num_waits: int | None = 1
    num_purges: int = 0
    num_reads: int = 0
    specs: dict[str, JobSpec] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    reserved: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    _pictures: dict[str, Sequence[Pictures]] = field(default_factory=dict)
    _done: dict[str, Job] = field(default_factory=dict)

    async def reserve(self, job_id: str, client: str) -> int:
        self.reserved.append(job_id)
        return 0

    async def release(self, job_id: str) -> None:
        self.released.append(job_id)

    async def submit(self, spec: JobSpec, pictures: Sequence[Pictures]) -> str:
        if spec.repeat_key is not None and (known := await self.find(spec.repeat_key)) is not None:
            return known.id
        self.specs[spec.id], self._pictures[spec.id] = spec, pictures
        return spec.id

    async def find(self, repeat_key: RepeatKey) -> JobSpec | None:
        for spec in self.specs.values():
            if spec.repeat_key and spec.repeat_key.key == repeat_key.key:
                if spec.repeat_key != repeat_key:
                    raise RepeatKeyConflict("The Idempotency-Key came with another request before.")
                return spec
        return None

    async def wait(self, job_id: str, wait_s: float) -> JobRecord:
        if wait_s == 0:
            return self._done[job_id].record if job_id in self._done else JobRecord(JobState.IN_QUEUE, 1000.0)
        if self.num_waits is None:
            await asyncio.Event().wait()
        if self.num_waits:
            self.num_waits -= 1
            return JobRecord(JobState.IN_PROGRESS, 1000.0)
        if job_id not in self._done:
            self._done[job_id] = await self._run(self.specs[job_id])
        return self._done[job_id].record

    async def wait_for_pictures(self, job_id: str, wait_s: float) -> JobEnd:
        record = await self.wait(job_id, wait_s)
        return JobEnd(record, self._done[job_id].outcomes if record.state.final else ())

    async def read(self, job_id: str) -> Job:
        self.num_reads += 1
        return self._done[job_id]

    async def _run(self, spec: JobSpec) -> Job:
        error = None if self.ends is JobState.COMPLETED else "broken" if self.problem is None else str(self.problem)
        code = None if self.problem is None else self.problem.code
        record = JobRecord(self.ends, 1000.0, 1001.0, 1002.5, error, code)
        if self.ends is not JobState.COMPLETED:
            return Job(spec.id, record, spec.seed)
        sets = self._pictures[spec.id]
        pairs = zip(spec.edits, spec.pictures_of, strict=True)
        outcomes = [await self.service.run(edit, SharedPictures(sets[index])) for edit, index in pairs]
        return Job(spec.id, record, spec.seed, tuple(outcomes))

    async def news(self, job_id: str, wait_s: float) -> JobNews:
        raise AssertionError("news are for one listener only")

    async def cancel(self, job_id: str) -> JobRecord:
        self.cancelled.append(job_id)
        raise JobNotFound(job_id)

    async def retry(self, job_id: str, call: str) -> JobRecord:
        raise JobNotFound(job_id)

    async def purge(self) -> int:
        self.num_purges += 1
        return 0

    async def counts(self) -> JobCounts:
        return JobCounts()

    async def fault(self) -> str | None:
        return None


@dataclass
class Harness:
    """The app over HTTP, and its ports."""

    settings: AppSettings
    backend: Backend
    app: FastAPI
    client: TestClient
    editor: FakeEditor
    rewriter: FakeRewriter
    jobs: FakeJobs
    shared: list[Pictures]

    def form(self, *parts: Part, **headers: str) -> Response:
        """A multipart request of these parts in this order; bytes are files."""
        files: list[tuple[str, Any]] = [
            (name, ("upload", content) if isinstance(content, bytes) else (None, content)) for name, content in parts
        ]
        return self.client.post(EDITS, files=files, headers=headers)

    def json(self, **fields: Any) -> Response:
        return self.client.post(EDITS, json=fields)

    def edit(self, encoding: str, **fields: Any) -> Response:
        """An edit of one picture in either encoding; in a form, what is not text is written as JSON writes it."""
        fields = {"prompt": "x", **fields}
        if encoding == "json":
            return self.json(image=DATA_URL, **fields)
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
        return self.form(("image", PNG), *texts.items())


def harness(
    settings: AppSettings, api_keys: tuple[str, ...] = (), operator_keys: tuple[str, ...] | None = None
) -> Harness:
    """`api_keys` as in the environment; none: none is needed. `operator_keys` likewise."""
    shared: list[Pictures] = []

    def share(pictures: Pictures) -> SharedPictures:
        shared.append(pictures)
        return SharedPictures(pictures)

    async def workers(busy: int) -> dict[str, int]:
        return {"idle": busy}

    editor, rewriter = FakeEditor(), FakeRewriter()
    service = EditService(editor, rewriter)
    jobs = FakeJobs(service)
    backend = Backend(
        settings,
        jobs,
        service,
        share,
        workers,
        Preparer(settings, shared_decoders()),
        keys_of(*api_keys) if api_keys else None,
        keys_of(*operator_keys) if operator_keys is not None else None,
    )
    app = build_app(backend)
    client = TestClient(app, raise_server_exceptions=False)
    return Harness(settings, backend, app, client, editor, rewriter, jobs, shared)


_kept: dict[str, Harness] = {}


def kept_harness(settings: AppSettings, **keys: tuple[str, ...]) -> Harness:
    """The same app for each test in this process, as it was when it was new; `keys` as for `harness`. FastAPI takes
    longer to build one than to run most tests."""
    name = f"{settings.model_dump_json()} {keys}"
    if name not in _kept:
        _kept[name] = harness(settings, **keys)
        return _kept[name]
    app = _kept[name]
    assert app.backend.draining.end() == 0  # no request is left
    app.editor.__init__()  # type: ignore[misc]
    app.rewriter.__init__()  # type: ignore[misc]
    app.jobs.__init__(app.jobs.service)  # type: ignore[misc]
    app.shared.clear()
    return app


def keys_of(*texts: str) -> Keys:
    """Keys as they are written in a file."""
    keys = [Key.parsed(text.encode()) for text in texts]
    return lambda: keys


def local(app: FastAPI) -> TestClient:
    """A client on the service's own machine."""
    return TestClient(app, client=("127.0.0.1", 1), base_url="http://127.0.0.1", raise_server_exceptions=False)


def error_of(response: Response, status: int) -> dict[str, Any]:
    """The error of a response, which must be in both shapes."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"detail", "error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["detail"] == body["error"]["message"]
    assert response.headers["x-request-id"]
    return dict(body["error"])


@dataclass
class Event:
    name: str | None
    data: dict[str, Any]


def events(text: str) -> list[Event]:
    """The events of a stream; comments are left out."""
    assert text.endswith("\n\n")
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        if "data" in lines:
            found.append(Event(lines.get("event"), json.loads(lines["data"])))
    return found


class Call:
    """One request on the ASGI level, whose client may leave: by a message, or by failing sends (ASGI 2.4)."""

    def __init__(
        self, app: FastAPI, fields: dict[str, Any], *, spec: str = "2.3", whole: bool = True, **headers: str
    ) -> None:
        self.left = asyncio.Event()
        self.status = 0
        self._whole = whole
        self.text = ""
        self._body: list[bytes] = [json.dumps(fields).encode()]
        self._spec = spec
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": spec},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": EDITS,
            "raw_path": EDITS.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
            "client": ("test", 1),
            "server": ("test", 80),
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": not self._whole}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if self.left.is_set() and self._spec == "2.4":
            raise OSError("the client has gone")
        self.status = message.get("status", self.status)
        self.text += message.get("body", b"").decode()
