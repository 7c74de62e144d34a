"""Which addresses may be dialled: literally, and as what a name resolves to."""

import asyncio
from ipaddress import ip_network

import pytest

from serve_app.net.addresses import addresses_of, is_public
from tests.network import FORBIDDEN, PUBLIC, Network


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()
    network.install(monkeypatch)
    return network


def resolved(host: str, *private_networks: str) -> list[str]:
    return asyncio.run(addresses_of(host, [ip_network(each) for each in private_networks]))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(network: Network, address: str) -> None:
    assert is_public(address)
    network.answers["host.example"] = [[address]]
    assert resolved("host.example") == [address]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_what_a_name_must_not_lead_to(network: Network, address: str) -> None:
    assert not is_public(address)
    for answer in ([address], [PUBLIC[0], address], [address, PUBLIC[0]]):
        network.answers["host.example"] = [answer]
        with pytest.raises(PermissionError):
            resolved("host.example")


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0177.0.0.1", "0x7f.1", "0x7f000001", "017700000001", "0"])
def test_numbers_that_systems_read_as_loopback(network: Network, host: str) -> None:
    with pytest.raises(PermissionError):
        resolved(host)
    assert network.resolved == [host]


def test_every_address_in_its_order_and_once(network: Network) -> None:
    network.answers["host.example"] = [[PUBLIC[1], PUBLIC[0], PUBLIC[1]]]
    assert resolved("host.example") == [PUBLIC[1], PUBLIC[0]]


def test_a_name_without_addresses(network: Network) -> None:
    network.answers["host.example"] = [[]]
    with pytest.raises(PermissionError):
        resolved("host.example")


def test_the_operators_own_networks(network: Network) -> None:
    network.answers["host.example"] = [["10.1.2.3", "fd00::1", PUBLIC[0]]]
    assert resolved("host.example", "10.0.0.0/8", "fd00::/64") == ["10.1.2.3", "fd00::1", PUBLIC[0]]
    with pytest.raises(PermissionError):
        resolved("host.example", "10.0.0.0/8")
    network.answers["host.example"] = [["fe80::1%lo"]]
    with pytest.raises(PermissionError):
        resolved("host.example", "fe80::/10")
    network.answers["host.example"] = [["::ffff:10.0.0.1"]]
    with pytest.raises(PermissionError):
        resolved("host.example", "10.0.0.0/8")


@pytest.mark.parametrize("literal", ["127.0.0.1", "10.0.0.1", "::1"])
def test_a_literal_address_is_itself_and_not_resolved(network: Network, literal: str) -> None:
    assert resolved(literal) == [literal]
    assert network.resolved == []


def test_localhost_is_loopback_and_nothing_else(network: Network) -> None:
    network.answers["localhost"] = [["::1", "127.0.0.1"], ["127.0.0.2"], ["10.0.0.1"]]
    assert resolved("localhost") == ["::1", "127.0.0.1"]
    for _ in range(2):
        with pytest.raises(PermissionError):
            resolved("localhost")


def test_what_cannot_be_a_name() -> None:
    with pytest.raises((OSError, UnicodeError)):
        resolved("a..example")
