"""Finds out whether Ray's record of the last cluster on this machine is stale.

`ray start` writes its address to a file in Ray's temporary folder, and only `ray stop` removes it. Without RAY_ADDRESS,
`ray.init` connects to that address, and if the cluster has stopped, it retries for minutes before it fails.
"""

import os
import socket

from ray._common.utils import get_ray_address_file
from ray._private.utils import read_ray_address

ADDRESS_VARIABLE = "RAY_ADDRESS"

_CONNECT_S = 2.0


def stale_record() -> str | None:
    """The path of the record if `ray.init` would use it and its cluster does not answer; else None."""
    path: str = get_ray_address_file(None)
    if os.environ.get(ADDRESS_VARIABLE) or not os.path.exists(path):
        return None
    return None if answers(read_ray_address()) else path


def answers(address: str) -> bool:
    """Whether something listens on HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return False
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
            return True
    except (OSError, OverflowError):
        return False
