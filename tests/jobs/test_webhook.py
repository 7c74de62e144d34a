"""Notifying a webhook: how often, and which hosts never."""

import asyncio
import gc
import logging
import weakref
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from serve_app.config import JobSettings
from serve_app.edits.job import Job, JobSpec
from serve_app.jobs import webhook
from serve_app.jobs.webhook import NUM_ATTEMPTS, notify_webhook
from tests.fakes import FakeEditor, picture
from tests.jobs import replicas
from tests.jobs.conftest import Stores, async_test
from tests.network import PUBLIC, Host, Network, hosting, repeats, sends, stalls
from tests.service.receiver import Receiver, receiving
from tests.waiting import until_async

BODY = b'{"id": "job"}'


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def listener() -> Iterator[Host]:
    with hosting(sends(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as listener:
        yield listener


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()
    network.install(monkeypatch)
    return network


def notified(url: str, *origins: str, private: tuple[str, ...] = (), timeout_s: float = 5) -> bool:
    settings = JobSettings(
        webhook_origins=origins,
        webhook_private_networks=tuple(ip_network(each) for each in private),
        webhook_timeout_s=timeout_s,
        webhook_gap_s=0,
    )
    return asyncio.run(notify_webhook("job", url, read_body, settings))


async def read_body() -> bytes:
    return BODY


@pytest.mark.parametrize(
    ("statuses", "taken", "num_calls"),
    [("200", True, 1), ("500,200", True, 2), ("404,302,200", True, 3), ("500", False, 3), ("201", False, 3)],
)
def test_anything_but_200_is_tried_again(receiver: Receiver, statuses: str, taken: bool, num_calls: int) -> None:
    assert notified(f"{receiver.origin}/hook/{statuses}", receiver.origin) is taken
    assert receiver.calls == [(f"/hook/{statuses}", {"id": "job"})] * num_calls


def test_a_body_of_json(listener: Host) -> None:
    assert notified(f"{listener.origin}/hook?a=b", listener.origin)
    head, _, body = listener.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /hook?a=b HTTP/1.1\r\n")
    assert b"\r\ncontent-type: application/json" in head.lower()
    assert body == BODY


def test_the_settings_are_checked_at_delivery(listener: Host) -> None:
    assert not notified(f"{listener.origin}/hook")
    assert not notified(f"{listener.origin}/hook", f"http://localhost:{listener.port}")
    assert listener.requests == []


@pytest.mark.parametrize("answer", [["127.0.0.1"], [PUBLIC[0], "127.0.0.1"], ["169.254.169.254"], ["::ffff:127.0.0.1"]])
def test_a_name_that_leads_inside(network: Network, listener: Host, answer: list[str]) -> None:
    origin = f"http://hooks.example:{listener.port}"
    network.answers["hooks.example"] = [answer]
    assert not notified(f"{origin}/hook", origin)
    assert network.resolved == ["hooks.example"] * NUM_ATTEMPTS
    assert (network.dialled, listener.requests) == ([], [])


def test_an_answer_that_changes_between_check_and_dialling(network: Network, listener: Host) -> None:
    origin = f"http://hooks.example:{listener.port}"
    network.answers["hooks.example"] = [[PUBLIC[0]], ["127.0.0.1"]]
    assert not notified(f"{origin}/hook", origin)
    assert (network.dialled, listener.requests) == ([PUBLIC[0]], [])


def test_a_name_in_a_network_of_the_operators(network: Network, listener: Host) -> None:
    origin = f"http://hooks.example:{listener.port}"
    network.answers["hooks.example"] = [["127.0.0.1"]]
    assert notified(f"{origin}/hook", origin, private=("127.0.0.0/8",))


def test_redirects_are_not_followed(listener: Host) -> None:
    answer = f"HTTP/1.1 307 Moved\r\nLocation: {listener.origin}/\r\nContent-Length: 0\r\n\r\n"
    with hosting(sends(answer.encode())) as redirecting:
        assert not notified(f"{redirecting.origin}/hook", redirecting.origin, listener.origin)
        assert len(redirecting.requests) == NUM_ATTEMPTS
    assert listener.requests == []


def test_a_host_that_never_answers_ends_each_attempt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with hosting(repeats(b"", b"H", gap_s=0.05)) as host:
        assert not notified(f"{host.origin}/secret-path", host.origin, timeout_s=0.2)
        assert len(host.requests) == NUM_ATTEMPTS
    with hosting(stalls()) as host:
        assert not notified(f"{host.origin}/secret-path", host.origin, timeout_s=0.2)
    assert "the webhook of job job could not be reached: TimeoutError" in caplog.text
    assert "secret-path" not in caplog.text


class Body:
    """Stands for the bytes of a body, which cannot be referred to weakly."""


@async_test
async def test_few_bodies_are_delivered_at_once_and_none_is_held_between_attempts(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies: weakref.WeakSet[Body] = weakref.WeakSet()
    running: Counter[str] = Counter()
    peaks: Counter[str] = Counter()
    tried: list[str] = []

    def make_body(spec: JobSpec, job: Job) -> Body:
        bodies.add(body := Body())
        return body

    async def refuse(job_id: str, *args: object) -> bool:
        client = job_id.split()[0]
        for name in (client, "all"):
            running[name] += 1
            peaks[name] = max(peaks[name], running[name])
        peaks["bodies"] = max(peaks["bodies"], len(bodies))
        await asyncio.sleep(0.2)
        running.subtract((client, "all"))
        tried.append(job_id)
        return False

    monkeypatch.setattr(replicas, "body", make_body)
    monkeypatch.setattr(webhook, "_taken", refuse)
    jobs = [f"{client} {number}" for client in ("anna", "otto", "emma", "hans", "vera") for number in range(8)]
    async with replicas.replica_on(stores.open(), FakeEditor(), webhook_gap_s=60.0) as service:
        for job_id in jobs:
            job = replicas.spec(job_id, client=job_id.split()[0], webhook="https://hooks.example/hook")
            await service.submit(job, [(picture(),)])
        await until_async(lambda: len(tried) == len(jobs))
        assert (await service.counts()).notifying == len(jobs)
        await asyncio.sleep(0)
        gc.collect()
        assert len(bodies) == 0
    assert peaks["all"] <= webhook.MAX_DELIVERIES
    assert peaks["bodies"] <= webhook.MAX_DELIVERIES
    assert max(peaks[client] for client in running if client != "all") <= webhook.MAX_DELIVERIES_OF_CLIENT
