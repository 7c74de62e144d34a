"""What clients may occupy: requests at once, bytes of bodies, and time. Both sides of each limit."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest
from fastapi.testclient import TestClient
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.config import AppSettings
from serve_app.ingress.app import build_app
from serve_app.ingress.limits import requests, transfer
from serve_app.ingress.limits.report import LIMITS_HEADER, LimitsReport, ReportLimits
from serve_app.ingress.limits.transfer import CHUNK_BYTES, GRACE_S, LINGER_S, MIN_BYTES_PER_S, TransferLimits
from tests.ingress.openai_harness import harness
from tests.stepping import run, settle

LIMITS = LimitsReport(max_body_bytes=100, max_bodies_bytes=200, max_requests_per_key=2)


@dataclass
class App:
    """Reads the body, then answers once it may.

    Attributes:
        bodies: of the requests that reached it completely.
    """

    answer: bytes = b"done"
    is_open: bool = True
    bodies: list[bytes] = field(default_factory=list)
    num_started: int = 0

    def __post_init__(self) -> None:
        self.may_answer = asyncio.Event()
        if self.is_open:
            self.may_answer.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_started += 1
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                await send({"type": "http.response.start", "status": 499, "headers": []})
                await send({"type": "http.response.body", "body": b"Serve's own text"})
                return
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self.answer})


class Connection:
    """The server's side of one request."""

    def __init__(
        self,
        key: str = "k",
        announced: int | None = None,
        path: str = "/runsync",
        peer: str = "1.2.3.4",
        **headers: str,
    ) -> None:
        fields = {"authorization": f"Bearer {key}"} if key else {}
        fields |= {} if announced is None else {"content-length": str(announced)}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "client": (peer, 1),
            "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
        }
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.num_receives = 0
        self.sent: list[Message] = []
        if announced is None and not headers:
            self.arrive(b"", more=False)

    def arrive(self, body: bytes, more: bool = True) -> "Connection":
        self.incoming.put_nowait({"type": "http.request", "body": body, "more_body": more})
        return self

    async def receive(self) -> Message:
        self.num_receives += 1
        return await self.incoming.get()

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def to(self, app: ASGIApp) -> "asyncio.Task[None]":
        async def call() -> None:
            await app(self.scope, self.receive, self.send)

        return asyncio.create_task(call())

    @property
    def status(self) -> int | None:
        """None: no response yet."""
        return self.sent[0]["status"] if self.sent else None

    @property
    def headers(self) -> Headers:
        return Headers(raw=self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def is_complete(self) -> bool:
        return bool(self.sent) and not self.sent[-1].get("more_body", self.sent[-1]["type"].endswith("start"))


async def statuses(app: ASGIApp, connections: Iterable[Connection]) -> list[int | None]:
    """The statuses of requests that arrive one after another, before any time has passed."""
    for each in connections:
        each.to(app)
        await settle()
    return [each.status for each in connections]


# Open requests.


def test_a_key_has_so_many_requests_open() -> None:
    async def main() -> None:
        app = App(is_open=False)
        limited = TransferLimits(app, LIMITS)
        assert await statuses(limited, [Connection(), Connection()]) == [None, None]
        third = Connection()
        assert await statuses(limited, [third]) == [429]
        assert "2 requests open" in json.loads(third.body)["error"]
        assert (third.headers["connection"], third.headers["retry-after"]) == ("close", "5")
        assert app.num_started == 2
        assert await statuses(limited, [Connection(key="another")]) == [None]
        # The same key as RunPod's clients send it.
        assert await statuses(limited, [Connection(key="", authorization="k")]) == [429]
        app.may_answer.set()
        await settle()
        assert await statuses(limited, [Connection()]) == [200]
        assert limited._open._by_client == {}

    run(main())


def test_addresses_are_not_limited_in_requests() -> None:
    async def main() -> None:
        limited = TransferLimits(App(is_open=False), LIMITS)
        assert await statuses(limited, [Connection(key="") for _ in range(5)]) == [None] * 5

    run(main())


def test_all_clients_together_leave_places_for_health(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_REQUESTS", 3)

    async def main() -> None:
        app = App(is_open=False)
        limited = TransferLimits(app, LIMITS)
        assert await statuses(limited, [Connection(key=str(number)) for number in range(4)]) == [None] * 3 + [429]
        paths = ("/health/live", "/health/ready", "/drain", "/undrain", "/-/healthz")
        free = [Connection(path=path, announced=10**9) for path in paths]
        assert await statuses(limited, free) == [None] * 5
        assert app.num_started == 3 + 5
        assert [each.num_receives for each in free] == [0] * 5  # They have an empty body.
        app.may_answer.set()
        await settle()
        assert [each.status for each in free] == [200] * 5

    run(main())


# Sizes.


def test_an_announced_body_that_is_too_large_is_not_read() -> None:
    async def main() -> None:
        app = App()
        limited = TransferLimits(app, LIMITS)
        right = Connection(announced=100).arrive(b"x" * 100, more=False)
        large = Connection(announced=101).arrive(b"", more=False)
        assert await statuses(limited, [right, large]) == [200, 413]
        assert "larger than the 100 bytes" in json.loads(large.body)["error"]
        assert app.bodies == [b"x" * 100]

    run(main())


def test_a_body_of_unknown_size_ends_at_the_limit() -> None:
    async def main() -> None:
        app = App()
        limited = TransferLimits(app, LIMITS)
        right = Connection(transfer_encoding="chunked").arrive(b"x" * 60).arrive(b"x" * 40, more=False)
        large = Connection(transfer_encoding="chunked").arrive(b"x" * 60).arrive(b"x" * 41).arrive(b"", more=False)
        assert await statuses(limited, [right, large]) == [200, 413]
        assert app.bodies == [b"x" * 100]
        assert b"Serve's own text" not in large.body

    run(main())


# Bytes of bodies at once.


def test_bodies_wait_for_bytes_in_the_order_of_their_arrival() -> None:
    async def main() -> None:
        limited = TransferLimits(App(), LIMITS)
        first, second = Connection("a", announced=100), Connection("b", announced=60)
        large, small = Connection("c", announced=80), Connection("d", announced=10)
        small.arrive(b"x" * 10, more=False)
        assert await statuses(limited, [first, second, large, small]) == [None] * 4
        assert [each.num_receives for each in (first, second, large, small)] == [1, 1, 0, 0]
        second.arrive(b"x" * 60, more=False)
        await settle()
        assert (second.status, large.num_receives, small.status) == (200, 1, 200)
        assert limited._bodies._budget.num_taken == 180

    run(main())


def test_a_client_that_waits_for_its_own_bodies_delays_no_other() -> None:
    async def main() -> None:
        limited = TransferLimits(App(), LIMITS)
        mine = [Connection("a", announced=60), Connection("a", announced=60)]
        other = Connection("b", announced=60).arrive(b"x" * 60, more=False)
        assert await statuses(limited, [*mine, other]) == [None, None, 200]
        assert [each.num_receives for each in mine] == [1, 0]

    run(main())


def test_without_a_key_the_bytes_of_an_address_count_together() -> None:
    async def main() -> None:
        limited = TransferLimits(App(), LIMITS)
        same = [Connection("", announced=60), Connection("", announced=60)]
        other = Connection("", announced=60, peer="5.6.7.8").arrive(b"x" * 60, more=False)
        assert await statuses(limited, [*same, other]) == [None, None, 200]

    run(main())


@pytest.mark.parametrize(("frees_after_s", "status"), [(requests.WAIT_S - 1, 200), (requests.WAIT_S + 1, 429)])
def test_a_body_waits_only_so_long(frees_after_s: float, status: int) -> None:
    async def main() -> None:
        app = App(is_open=False)
        limited = TransferLimits(app, LIMITS)
        first = Connection(announced=100).arrive(b"x" * 100, more=False)
        waits = Connection(announced=100).arrive(b"x" * 100, more=False)
        await statuses(limited, [first, waits])
        await asyncio.sleep(frees_after_s)
        app.may_answer.set()
        await settle()
        assert (waits.status, first.status) == (status, 200)
        assert (waits.headers.get("retry-after") == "5") == (status == 429)
        assert (limited._bodies._budget.num_taken, limited._bodies._budget._waiting) == (0, [])

    run(main())


def test_a_body_that_is_larger_than_all_bytes_is_taken_alone() -> None:
    async def main() -> None:
        app = App(is_open=False)
        limited = TransferLimits(app, LimitsReport(max_body_bytes=1000, max_bodies_bytes=200))
        small = Connection(announced=10).arrive(b"x" * 10, more=False)
        large = Connection("b", announced=1000).arrive(b"x" * 1000, more=False)
        assert await statuses(limited, [small, large]) == [None, None]
        assert large.num_receives == 0
        app.may_answer.set()
        await settle()
        assert (small.status, large.status) == (200, 200)

    run(main())


def test_a_body_of_unknown_size_gives_back_what_it_did_not_need() -> None:
    async def main() -> None:
        app = App(is_open=False)
        limited = TransferLimits(app, LIMITS)
        chunked = Connection(transfer_encoding="chunked").arrive(b"x" * 30)
        second = Connection(announced=70).arrive(b"x" * 70, more=False)
        await statuses(limited, [chunked, second])
        assert (limited._bodies._budget.num_taken, second.num_receives) == (100, 0)
        chunked.arrive(b"", more=False)
        await settle()
        assert (limited._bodies._budget.num_taken, second.num_receives) == (100, 1)

    run(main())


def test_a_client_that_leaves_gives_back_its_bytes() -> None:
    async def main() -> None:
        limited = TransferLimits(App(), LIMITS)
        reading, waiting = Connection(announced=100).to(limited), Connection(announced=100).to(limited)
        await settle()
        waiting.cancel()
        await settle()
        assert (limited._bodies._budget.num_taken, limited._bodies._budget._waiting) == (100, [])
        reading.cancel()
        await settle()
        assert (limited._bodies._budget.num_taken, limited._open._by_client) == (0, {})

    run(main())


# Slow bodies.

WIDE = LimitsReport(max_body_bytes=10**7, max_bodies_bytes=10**7, max_requests_per_key=2)


@pytest.mark.parametrize(("second_s", "status"), [(1.0, 200), (1.2, 408)])
def test_a_body_must_arrive_fast_enough(second_s: float, status: int) -> None:
    """For a minute, each second's bytes arrive after `second_s`."""

    async def main() -> None:
        slow = Connection(announced=60 * MIN_BYTES_PER_S)
        slow.to(TransferLimits(App(), WIDE))
        for number in range(60):
            await asyncio.sleep(second_s)
            slow.arrive(b"x" * MIN_BYTES_PER_S, more=number < 59)
        await settle()
        assert slow.status == status
        if status == 408:
            assert f"slowly than {MIN_BYTES_PER_S} bytes per second" in json.loads(slow.body)["error"]
            assert slow.headers["connection"] == "close"
            assert slow.is_complete

    run(main())


@pytest.mark.parametrize(("pause_s", "status"), [(GRACE_S - 1, 200), (GRACE_S + 1, 408)])
def test_a_body_may_pause_for_the_grace_however_much_has_arrived(pause_s: float, status: int) -> None:
    async def main() -> None:
        paused = Connection(announced=5_000_001).arrive(b"x" * 5_000_000)
        paused.to(TransferLimits(App(), WIDE))
        await asyncio.sleep(pause_s)
        paused.arrive(b"x", more=False)
        await settle()
        assert paused.status == status

    run(main())


def test_the_time_in_which_a_body_is_not_read_does_not_count() -> None:
    async def main() -> None:
        app = App(is_open=False)
        limited = TransferLimits(app, LIMITS)
        first = Connection(announced=100).arrive(b"x" * 100, more=False)
        waits = Connection(announced=100)
        await statuses(limited, [first, waits])
        await asyncio.sleep(requests.WAIT_S - 1)
        app.may_answer.set()
        await asyncio.sleep(GRACE_S - 1)
        waits.arrive(b"x" * 100, more=False)
        await settle()
        assert waits.status == 200

    run(main())


def test_a_request_may_wait_for_its_response_after_its_body() -> None:
    async def main() -> None:
        app = App(is_open=False)
        patient = Connection(announced=1).arrive(b"x", more=False)
        patient.to(TransferLimits(app, LIMITS))
        await asyncio.sleep(1000 * GRACE_S)
        app.may_answer.set()
        await settle()
        assert patient.status == 200

    run(main())


# Rejected requests whose body is still arriving.


def test_the_rest_of_a_rejected_body_is_discarded_before_the_connection_is_closed() -> None:
    async def main() -> None:
        large = Connection(announced=101)
        large.to(TransferLimits(App(), LIMITS))
        await settle()
        assert (large.status, large.is_complete) == (413, False)
        assert "larger" in json.loads(large.body)["error"]  # The response itself is complete.
        large.arrive(b"x" * 50).arrive(b"x" * 51, more=False)
        await settle()
        assert large.is_complete

    run(main())


@pytest.mark.parametrize("is_endless", [True, False])
def test_the_rest_of_a_rejected_body_is_discarded_up_to_a_time_and_a_size(
    monkeypatch: pytest.MonkeyPatch, is_endless: bool
) -> None:
    monkeypatch.setattr(transfer, "LINGER_BYTES", 50 if is_endless else 100)

    async def main() -> None:
        large = Connection(announced=101).arrive(b"x" * 50)
        large.to(TransferLimits(App(), LIMITS))
        await settle()
        assert large.is_complete == is_endless
        await asyncio.sleep(LINGER_S)
        assert large.is_complete

    run(main())


# Responses.


def test_a_response_is_sent_in_chunks() -> None:
    async def main() -> None:
        answer = bytes(range(256)) * 1024
        reader = Connection()
        await statuses(TransferLimits(App(answer), LIMITS), [reader])
        assert reader.body == answer
        assert {len(each["body"]) for each in reader.sent[1:]} == {CHUNK_BYTES}
        assert [each["more_body"] for each in reader.sent[1:]] == [True] * 3 + [False]

    run(main())


def test_the_application_reports_its_limits_to_the_proxy_alone() -> None:
    async def main() -> None:
        report = LimitsReport(max_body_bytes=10, max_bodies_bytes=20, max_requests_per_key=1)
        limited = TransferLimits(ReportLimits(App(), report))
        first = Connection(announced=11, path="/health/live")
        second = Connection(announced=10).arrive(b"x" * 10, more=False)
        assert await statuses(limited, [first, second, Connection(announced=11)]) == [200, 200, 413]
        assert LIMITS_HEADER not in first.headers
        assert LIMITS_HEADER not in second.headers
        assert limited._bodies._budget.total == 20

    run(main())


@pytest.mark.parametrize("path", ["/health/live", "/health", "/status/unknown"])
def test_every_response_of_the_application_has_its_limits(tiny_settings: AppSettings, path: str) -> None:
    backend = replace(harness(tiny_settings, ("key",)).backend, behind_serve=True)
    response = TestClient(build_app(backend)).get(path)
    assert response.status_code == (200 if path == "/health/live" else 401)
    assert response.headers[LIMITS_HEADER] == str(LimitsReport.of(tiny_settings))


def test_behind_haproxy_the_application_applies_them_itself(tiny_settings: AppSettings) -> None:
    limits = tiny_settings.limits.model_copy(update={"max_bodies_bytes": 200})
    backend = harness(tiny_settings.model_copy(update={"limits": limits})).backend
    app = build_app(replace(backend, behind_serve=True, behind_haproxy=True))

    async def main() -> None:
        slow, waits = Connection(announced=200), Connection(announced=200)
        assert await statuses(app, [slow, waits]) == [None, None]
        await asyncio.sleep(GRACE_S + LINGER_S)
        assert (slow.status, waits.status) == (408, None)
        assert LIMITS_HEADER not in slow.headers
        await asyncio.sleep(GRACE_S)
        assert waits.status == 408

    run(main())
