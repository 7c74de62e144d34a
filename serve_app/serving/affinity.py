"""Which replica gets an edit: the one that has its picture encoded, unless it has much more to do than the others."""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping

EXCESS = 1.25
"""A replica may have this many times the mean load."""

MAX_EXTRA_LOAD = 4
"""How many edits above that a replica may have and still get an edit of a picture that it has encoded: an encoding
saved is worth a short wait, not a long one."""

MAX_PICTURES = 1024
"""Remembered with their replicas, about as many as the editors' caches hold."""


class PictureAffinity:
    """Remembers where pictures went. An edit of a new picture goes to the first replica whose load is near the mean.
    The order depends on picture and replica only, so different processes choose the same replica while loads are
    similar, and edits of different pictures spread evenly."""

    def __init__(self) -> None:
        self._replica_of: OrderedDict[str, str] = OrderedDict()

    def order(self, picture: str, loads: Mapping[str, float]) -> list[str]:
        """All replicas, the preferred one first.

        Args:
            loads: edits that each replica has, by its name.
        """
        mean = (sum(loads.values()) + 1) / max(1, len(loads))
        known = self._replica_of.get(picture, "")
        hashed = sorted(loads, key=lambda replica: _rank(picture, replica))
        near = [replica for replica in hashed if loads[replica] < math.ceil(EXCESS * mean)]
        far = sorted((replica for replica in hashed if replica not in near), key=lambda replica: loads[replica])
        follows = [known] if known in loads and loads[known] < EXCESS * mean + MAX_EXTRA_LOAD else []
        return list(dict.fromkeys([*follows, *near, *far]))

    def remember(self, picture: str, replica: str) -> None:
        """The edit of a picture goes to this replica."""
        self._replica_of[picture] = replica
        self._replica_of.move_to_end(picture)
        if len(self._replica_of) > MAX_PICTURES:
            self._replica_of.popitem(last=False)


def _rank(picture: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{picture} {replica}".encode(), digest_size=8).digest()
