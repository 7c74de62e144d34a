"""The addresses of a host name, and which of them outbound requests may connect to."""

import asyncio
import functools
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network

NUM_RESOLVER_THREADS = 8

_GLOBAL_UNICAST_V6 = ip_network("2000::/3")
# IANA's special-purpose registries: `ipaddress.is_global` is True for 224.0.0.1, 64:ff9b::7f00:1, 2002:7f00:1:: and
# fec0::1. https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry.
_SPECIAL = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # shared by a provider's customers
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure's own service inside each virtual machine
            "169.254.0.0/16",  # link-local, with the clouds' metadata
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
            "2001::/23",  # protocol assignments, with Teredo
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4
            "3fff::/20",  # documentation
        ),
    )
)
_LOCALHOST = (ip_network("127.0.0.1/32"), ip_network("::1/128"))


def is_public(address: str) -> bool:
    """Whether it is the address of one host on the internet and embeds no other address."""
    if "%" in address:  # the zone of a link-local address
        return False
    parsed = ip_address(address)
    if parsed.version == 6 and parsed not in _GLOBAL_UNICAST_V6:
        return False
    return not any(parsed in network for network in _SPECIAL)


async def addresses_of(host: str, private_networks: Sequence[Network]) -> list[str]:
    """The addresses of a host, in the order to try them. Requests may connect to all of them.

    A literal address is returned as it is, and localhost may be a loopback address: an operator who allows them means
    them. All addresses of any other name must be public or in `private_networks`.

    Raises:
        OSError: the name has no address, or a forbidden one.
        UnicodeError: it is not a valid name.
    """
    if _is_literal(host):
        return [host]
    addresses = await _resolve(host)
    networks = (*private_networks, *_LOCALHOST) if host == "localhost" else private_networks
    if not addresses or not all(is_public(address) or _is_in(address, networks) for address in addresses):
        raise PermissionError("an address of this host may not be dialled")
    return addresses


async def _resolve(host: str) -> list[str]:
    resolve = functools.partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
    answers = await asyncio.get_running_loop().run_in_executor(_threads(), resolve)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in answers))


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Not the event loop's default executor: a slow name server must delay nothing else."""
    return ThreadPoolExecutor(NUM_RESOLVER_THREADS, thread_name_prefix="resolve")


def _is_in(address: str, networks: Sequence[Network]) -> bool:
    return "%" not in address and any(ip_address(address) in network for network in networks)


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
