"""Preparing the pictures of a request, and fetching them: from good and bad hosts, and from forbidden addresses."""

import asyncio
import gzip
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from threading import Event

import pytest

from serve_app.config import AppSettings, FetchSettings
from serve_app.edits.request import EditOptions
from serve_app.errors import InvalidInput
from serve_app.ingress.pictures.prepare import (
    MAX_FETCHES,
    MAX_FETCHES_PER_REQUEST,
    FetchAllowance,
    Fetcher,
    ParsedRequest,
    PictureSource,
    Prepared,
    Preparer,
)
from tests.ingress.openai_harness import PNG, shared_decoders
from tests.network import FORBIDDEN, PUBLIC, Host, Network, Script, hosting, repeats, sends, stalls
from tests.service.receiver import Receiver, receiving
from tests.waiting import until_async

SLOW, BROKEN = PictureSource("slow", "https://slow/picture"), PictureSource("broken", "https://broken/picture")
ONE_SET = ParsedRequest(((SLOW, BROKEN),), (EditOptions(prompt="x"),), (0,), None, None, ("width", "height"))
TWO_SETS = replace(
    ONE_SET,
    picture_sets=((SLOW,), (BROKEN,)),
    edits=(EditOptions(prompt="x"), EditOptions(prompt="y")),
    pictures_of=(0, 1),
)


@pytest.mark.parametrize("parsed", [ONE_SET, TWO_SETS], ids=["references", "batch"])
def test_a_picture_that_cannot_be_fetched_ends_the_fetches_beside_it(
    tiny_settings: AppSettings, parsed: ParsedRequest
) -> None:
    begun, ended = [], []

    async def fetch(url: str, field: str, allowance: FetchAllowance) -> bytes:
        begun.append(field)
        try:
            if field == "slow":
                await asyncio.Event().wait()
            raise InvalidInput(f"{field} could not be fetched", field)
        finally:
            ended.append(field)

    async def scenario() -> None:
        preparer = Preparer(tiny_settings, shared_decoders())
        vars(preparer)["_fetcher"] = fetch
        with pytest.raises(InvalidInput, match="broken could not be fetched"):
            await preparer("request", parsed)
        assert sorted(begun) == sorted(ended) == ["broken", "slow"]

    asyncio.run(scenario())


NOT_FETCHED = (
    "url[0] could not be fetched, or is a URL that this server may not fetch. Send the picture itself, as a file or in "
    "base64."
)
OK = b"HTTP/1.1 200 OK\r\n"
DEADLINE_S = 0.4
HANG_S = 60.0


@pytest.fixture
def host() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def listener() -> Iterator[Host]:
    """A host that answers every request."""
    with hosting(sends(OK + b"Content-Length: 6\r\n\r\nsecret")) as listener:
        yield listener


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()
    network.install(monkeypatch)
    return network


def fetch(url: str, *origins: str, max_bytes: int = 100, timeout_s: float = 5, private: tuple[str, ...] = ()) -> bytes:
    networks = tuple(ip_network(each) for each in private)
    settings = FetchSettings(origins=origins, private_networks=networks, timeout_s=timeout_s)
    return asyncio.run(asyncio.wait_for(Fetcher(settings, max_bytes)(url, "url[0]", FetchAllowance(2**20)), HANG_S))


def refuses(url: str, *origins: str, timeout_s: float = 5, private: tuple[str, ...] = ()) -> bool:
    """Whether it is rejected with the one message for all reasons. An endless fetch raises TimeoutError instead."""
    with pytest.raises(InvalidInput) as caught:
        fetch(url, *origins, timeout_s=timeout_s, private=private)
    return (caught.value.field, caught.value.message) == ("url[0]", NOT_FETCHED)


def test_a_file_of_an_allowed_origin(host: Receiver) -> None:
    host.pictures["/a/b?c=d"] = b"picture"
    assert fetch(f"{host.origin}/a/b?c=d", host.origin) == b"picture"


def test_nothing_is_fetched_unless_the_operator_says_so(listener: Host) -> None:
    assert refuses(f"{listener.origin}/x")
    assert refuses(f"{listener.origin}/x", "http://127.0.0.1:1", listener.origin.replace("http", "https"))
    assert refuses(f"http://localhost:{listener.port}/x", listener.origin)
    assert refuses(f"http://localhost.:{listener.port}/x", f"http://localhost.:{listener.port}")
    assert listener.requests == []
    assert fetch(f"{listener.origin}/x", listener.origin) == b"secret"
    assert fetch(f"http://localhost:{listener.port}/x", f"http://localhost:{listener.port}") == b"secret"


def test_both_sides_of_the_cap(host: Receiver) -> None:
    host.pictures.update({"/large": bytes(101), "/whole": bytes(100)})
    assert refuses(f"{host.origin}/large", host.origin)
    assert fetch(f"{host.origin}/whole", host.origin) == bytes(100)


def test_what_is_not_there(host: Receiver) -> None:
    assert refuses(f"{host.origin}/missing", host.origin)
    assert refuses("http://127.0.0.1:1/", "http://127.0.0.1:1")


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433:{port}/",
        "http://127.1:{port}/",
        "http://0x7f.0.0.1:{port}/",
        "http://0177.0.0.1:{port}/",
        "http://①②⑦.⓪.⓪.①:{port}/",
        "http://127。0。0。1:{port}/",
        "http://0.0.0.0:{port}/",
        "http://0:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://[64:ff9b::7f00:1]:{port}/",
        "http://[2002:7f00:1::]:{port}/",
        "http://[fec0::1]:{port}/",
        "http://[fe80::1%25lo]:{port}/",
        "http://[fe80::1%lo]:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://224.0.0.1:{port}/",
        "http://pictures.example@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\@pictures.example/",
        "http://pictures.example\\@127.0.0.1:{port}/",
        "http://pictures.example:80\n@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}#@pictures.example/",
        "http://127.0.0.1:{port}?@pictures.example/",
        "http://pictures.example/\ud800",
        "http://pictures.example/a b",
    ],
)
def test_forms_of_an_url(network: Network, listener: Host, url: str) -> None:
    network.answers["pictures.example"] = [[PUBLIC[0]]]
    numbers = tuple(f"http://{host}:{listener.port}" for host in ("2130706433", "127.1", "0x7f.0.0.1", "0"))
    assert refuses(url.format(port=listener.port), "http://pictures.example", *numbers)
    assert (listener.requests, network.dialled) == ([], [])


@pytest.mark.parametrize("address", FORBIDDEN)
def test_answers_of_a_name_server(network: Network, listener: Host, address: str) -> None:
    origin = f"http://pictures.example:{listener.port}"
    for answer in ([address], [PUBLIC[0], address], [address, PUBLIC[0]]):
        network.answers["pictures.example"] = [answer]
        assert refuses(f"{origin}/x", origin)
    assert (listener.requests, network.dialled) == ([], [])


def test_an_answer_that_changes_between_check_and_dialling(network: Network, listener: Host) -> None:
    origin = f"http://pictures.example:{listener.port}"
    network.answers["pictures.example"] = [[PUBLIC[0]], ["127.0.0.1"]]
    assert refuses(f"{origin}/x", origin)
    assert (network.resolved, network.dialled) == (["pictures.example"], [PUBLIC[0]])
    assert refuses(f"{origin}/x", origin)
    assert (network.dialled, listener.requests) == ([PUBLIC[0]], [])


def test_a_name_with_public_addresses_is_fetched_by_its_name(network: Network, listener: Host) -> None:
    origin = f"http://pictures.example:{listener.port}"
    network.answers["pictures.example"] = [PUBLIC[:2]]
    network.reachable = {PUBLIC[1]}  # the first one refuses
    assert fetch(f"{origin}/x", origin) == b"secret"
    assert network.dialled == PUBLIC[:2]
    assert f"\r\nhost: pictures.example:{listener.port}\r\n".encode() in listener.requests[0].lower()


def test_addresses_of_both_families_are_tried(network: Network, listener: Host) -> None:
    origin = f"http://pictures.example:{listener.port}"
    network.answers["pictures.example"] = [["2606:4700:4700::1111", PUBLIC[0]]]
    network.reachable = {PUBLIC[0]}
    assert fetch(f"{origin}/x", origin) == b"secret"
    assert network.resolved == ["pictures.example"]


def test_a_name_in_a_network_of_the_operators(network: Network, listener: Host) -> None:
    origin = f"http://pictures.example:{listener.port}"
    network.answers["pictures.example"] = [["127.0.0.1"]]
    assert refuses(f"{origin}/x", origin, private=("10.0.0.0/8",))
    assert fetch(f"{origin}/x", origin, private=("10.0.0.0/8", "127.0.0.0/8")) == b"secret"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(listener: Host, status: int) -> None:
    answer = f"HTTP/1.1 {status} Moved\r\nLocation: {listener.origin}/\r\nContent-Length: 0\r\n\r\n"
    with hosting(sends(answer.encode())) as redirecting:
        assert refuses(f"{redirecting.origin}/x", redirecting.origin, listener.origin)
        assert len(redirecting.requests) == 1
    assert listener.requests == []


def test_proxies_of_the_environment_are_not_asked(listener: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, listener.origin)
    with hosting(sends(OK + b"\r\ndirect")) as host:
        assert fetch(f"{host.origin}/x", host.origin) == b"direct"
    assert listener.requests == []


@pytest.mark.parametrize(
    "script",
    [
        stalls(),
        stalls(OK),
        stalls(OK + b"Content-Length: 9\r\n\r\nab"),
        repeats(b"", b"H", gap_s=0.1),
        repeats(OK, b"X: y\r\n", gap_s=0.1),
        repeats(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        repeats(OK + b"Content-Length: 99\r\n\r\n", b"x", gap_s=0.1),
        repeats(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", gap_s=0.1),
        repeats(OK, bytes(65536)),
        repeats(OK + b"\r\n", bytes(65536)),
        repeats(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        repeats(OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", b"9\r\nxxxxxxxxx\r\n"),
        repeats(OK + b"Content-Length: 999999999999\r\n\r\n", bytes(65536)),
        sends(OK + b"Content-Length: 9\r\n\r\nab"),
        sends(OK + b"Content-Length: -1\r\n\r\nab"),
        sends(OK + b"Content-Length: 1, 2\r\n\r\nab"),
        sends(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
        sends(b""),
        sends(b"\x16\x03\x01 no HTTP\r\n\r\n"),
    ],
    ids=[
        "silent",
        "silent-in-headers",
        "silent-in-body",
        "drips-status-line",
        "drips-headers",
        "endless-interim-answers",
        "drips-body",
        "drips-chunks",
        "endless-headers",
        "endless-body",
        "endless-chunks",
        "endless-chunks-and-a-length",
        "endless-body-of-a-huge-length",
        "body-shorter-than-its-length",
        "negative-length",
        "two-lengths",
        "no-chunk",
        "hangs-up",
        "no-http",
    ],
)
def test_a_host_that_misbehaves(script: Script) -> None:
    """Silent, slow and endless hosts go on for as long as the client reads."""
    with hosting(script) as host:
        assert refuses(f"{host.origin}/x", host.origin, timeout_s=DEADLINE_S)
        assert len(host.requests) == 1


def test_a_body_longer_than_its_length_ends_there() -> None:
    with hosting(repeats(OK + b"Content-Length: 5\r\n\r\n", b"x" * 65536)) as host:
        assert fetch(f"{host.origin}/x", host.origin) == b"xxxxx"


def test_what_is_packed_is_not_unpacked() -> None:
    packed = gzip.compress(bytes(10_000))
    with hosting(sends(OK + b"Content-Encoding: gzip\r\n\r\n" + packed)) as host:
        assert fetch(f"{host.origin}/x", host.origin) == packed
        assert b"\r\naccept-encoding: identity\r\n" in host.requests[0].lower()


def test_a_name_server_that_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    was_called, over = Event(), Event()
    answered: list[bool] = []

    def stall(*_: object, **__: object) -> list[object]:
        was_called.set()
        answered.append(over.wait(HANG_S))
        return []

    monkeypatch.setattr("socket.getaddrinfo", stall)
    assert refuses("http://pictures.example/x", "http://pictures.example", timeout_s=DEADLINE_S)
    assert was_called.is_set()
    assert answered == []
    over.set()


def test_the_pictures_of_a_request_share_an_allowance_of_bytes(host: Receiver, tiny_settings: AppSettings) -> None:
    """Each is within its own limit, and is fetched until the body's limit is reached."""
    host.pictures.update({"/a": PNG, "/b": PNG})
    sources = tuple(PictureSource(f"url[{name}]", f"{host.origin}/{name}") for name in "ab")
    parsed = replace(ONE_SET, picture_sets=(sources,))

    def prepared(max_body_bytes: int) -> Prepared:
        limits = tiny_settings.limits.model_copy(update={"max_body_bytes": max_body_bytes})
        fetching = FetchSettings(origins=(host.origin,))
        settings = tiny_settings.model_copy(update={"limits": limits, "fetch": fetching})
        return asyncio.run(Preparer(settings, shared_decoders())("request", parsed))

    assert len(prepared(2 * len(PNG)).pictures[0]) == 2
    with pytest.raises(InvalidInput, match=r"that the fetched pictures of a request may have together") as caught:
        prepared(2 * len(PNG) - 1)
    assert caught.value.field in ("url[a]", "url[b]")


@pytest.mark.parametrize(("num_requests", "at_once"), [(1, MAX_FETCHES_PER_REQUEST), (9, MAX_FETCHES)])
def test_a_few_pictures_are_fetched_at_once(
    num_requests: int, at_once: int, tiny_settings: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_begun = 0
    gate = asyncio.Semaphore(0)

    async def fetch(*_: object) -> bytes:
        nonlocal num_begun
        num_begun += 1
        await gate.acquire()
        return PNG

    monkeypatch.setattr(Fetcher, "_fetch", fetch)
    sources = tuple((PictureSource(f"url[{number}]", f"https://x/{number}"),) for number in range(16))
    parsed = replace(ONE_SET, picture_sets=sources, edits=(EditOptions(prompt="x"),) * 16, pictures_of=tuple(range(16)))

    async def scenario() -> None:
        preparer = Preparer(tiny_settings, shared_decoders())
        requests = [asyncio.create_task(preparer(str(number), parsed)) for number in range(num_requests)]
        await until_async(lambda: num_begun == at_once)
        for _ in range(100):  # enough turns of the loop for a fetch too many
            await asyncio.sleep(0)
        assert num_begun == at_once
        gate.release()
        await until_async(lambda: num_begun == at_once + 1)
        for request in requests:
            request.cancel()
        await asyncio.wait(requests)

    asyncio.run(scenario())
