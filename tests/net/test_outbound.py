"""TLS of what is dialled by its address, and the end of an exchange."""

import asyncio
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from serve_app.net import outbound
from serve_app.net.outbound import Outbound, Unreachable
from tests.network import PUBLIC, Host, Network, hosting, repeats, sends


@dataclass(frozen=True)
class Certificate:
    """Of pictures.example, signed by itself."""

    folder: Path

    def make(self) -> None:
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 2 -subj /CN=pictures"
        named = "-addext subjectAltName=DNS:pictures.example -keyout key.pem -out certificate.pem"
        subprocess.run([*command.split(), *named.split()], cwd=self.folder, check=True, capture_output=True)

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "certificate.pem", self.folder / "key.pem")
        return context

    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.folder / "certificate.pem")


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    certificate = Certificate(tmp_path)
    certificate.make()
    return certificate


@pytest.fixture
def named() -> list[str | None]:
    """The server names that clients sent in their TLS hello."""
    return []


@pytest.fixture
def secure(certificate: Certificate, named: list[str | None]) -> Iterator[Host]:
    context = certificate.server()
    context.sni_callback = lambda _, name, __: named.append(name)
    with hosting(sends(b"HTTP/1.1 200 OK\r\n\r\nsealed"), lambda sock: context.wrap_socket(sock, True)) as host:
        yield host


@pytest.fixture
def get(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], bytes]:
    """GET from names that lie behind a public address, which is this machine."""
    network = Network({name: [[PUBLIC[0]]] for name in ("pictures.example", "other.example")}, {PUBLIC[0]})
    network.install(monkeypatch)

    async def body(url: str) -> bytes:
        origin = url.removesuffix("/x")
        async with Outbound((origin,), (), 5).exchange("GET", url, {}) as response:
            return await response.aread()

    return lambda url: asyncio.run(body(url))


def test_tls_verifies_the_name_and_not_the_address(
    secure: Host,
    certificate: Certificate,
    named: list[str | None],
    get: Callable[[str], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbound, "tls_context", certificate.client)
    assert get(f"https://pictures.example:{secure.port}/x") == b"sealed"
    assert named == ["pictures.example"]
    with pytest.raises(Unreachable):
        get(f"https://other.example:{secure.port}/x")
    assert named == ["pictures.example", "other.example"]
    assert len(secure.requests) == 1


def test_tls_wants_a_certificate_of_an_authority(secure: Host, get: Callable[[str], bytes]) -> None:
    with pytest.raises(Unreachable):
        get(f"https://pictures.example:{secure.port}/x")
    assert secure.requests == []


def test_certificates_are_loaded_once() -> None:
    assert outbound.tls_context() is outbound.tls_context()
    assert outbound.tls_context().verify_mode is ssl.CERT_REQUIRED
    assert outbound.tls_context().check_hostname


def test_the_deadline_holds_over_what_the_caller_does_with_the_answer() -> None:
    async def slow(host: Host) -> None:
        async with Outbound((host.origin,), (), 0.3).exchange("GET", f"{host.origin}/", {}) as response:
            assert response.status_code == 200
            await asyncio.sleep(5)

    with (
        hosting(repeats(b"HTTP/1.1 200 OK\r\n\r\n", b"x")) as host,
        pytest.raises(Unreachable, match="TimeoutError"),
    ):
        asyncio.run(slow(host))


def test_being_cancelled_is_no_failure_of_the_host() -> None:
    async def cancelled(host: Host) -> None:
        async with Outbound((host.origin,), (), 5).exchange("GET", f"{host.origin}/", {}):
            raise asyncio.CancelledError

    with hosting(sends(b"HTTP/1.1 200 OK\r\n\r\n")) as host, pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled(host))
