"""How clients share what is scarce. A client is the name of an API key; where no key is needed, all clients are one,
with an empty name.

- `FairQueue`: which item is next.
- `Slots`: how many are served at once, in all and of one client.
- `Places`: whether one more is accepted.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from serve_app.edits.request import LOW_PRIORITY_DELAY_S
from serve_app.errors import KeyPlacesTaken, Overloaded

ACTIVE_S = 60.0
"""For how long after a request of another client one client's places are limited."""


class Item(Protocol):
    """What waits. `rank` is its place among its client's items, the smallest is next; for low priority, when it stops
    yielding to all others. In seconds of the queue's clock."""

    @property
    def client(self) -> str: ...
    @property
    def rank(self) -> float: ...
    @property
    def is_low_priority(self) -> bool: ...


T = TypeVar("T", bound=Item)


def rank_of(queued_at: float, is_low_priority: bool) -> float:
    """An item's rank from the time at which it was queued."""
    return queued_at + (LOW_PRIORITY_DELAY_S if is_low_priority else 0.0)


class FairQueue(Generic[T]):
    """Round-robin by client, each client's items in their order: a client that queues many items delays the others by
    one each. Low-priority items yield to all others until their rank.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._items: list[T] = []
        # Kept for clients without items: one that always has a single item must not come first each time. There are as
        # many as API keys.
        self._served_at: dict[str, int] = {}
        self._num_served = 0

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def add(self, item: T) -> None:
        self._items.append(item)

    def discard(self, item: T) -> None:
        """Remove an item that leaves unserved."""
        if item in self._items:
            self._items.remove(item)

    def next(self, allows: Callable[[T], bool] = lambda item: True) -> T | None:
        """The item whose turn it is, of those that `allows` accepts: the first one of the client that was served least
        recently. None: there is none."""
        now = self._clock()
        return min(filter(allows, self._items), key=lambda item: self._order(item, now), default=None)

    def serve(self, item: T) -> None:
        """Remove the item; its client's next turn comes after the others'."""
        self._items.remove(item)
        self._num_served += 1
        self._served_at[item.client] = self._num_served

    def clear(self) -> None:
        self._items.clear()

    def _order(self, item: T, now: float) -> tuple[bool, int, float]:
        yields = item.is_low_priority and item.rank > now
        return yields, self._served_at.get(item.client, 0), item.rank


class Slots(Generic[T]):
    """Serves `num` items at once. An eighth of the slots is kept from each named client, so that another one finds a
    slot at once. The other items wait in a FairQueue.

    Args:
        clock: seconds.

    Attributes:
        num: may be changed; items that are served stay.
    """

    def __init__(self, num: int, clock: Callable[[], float]) -> None:
        self.num = num
        self.waiting = FairQueue[T](clock)
        self.served: set[T] = set()

    def start_next(self) -> T | None:
        """Serve the next item; None if there is no slot for one that waits."""
        if len(self.served) >= self.num or not self.waiting:
            return None
        of_client = Counter(item.client for item in self.served)
        most = self.num - self.num // 8
        item = self.waiting.next(lambda item: not item.client or of_client[item.client] < most)
        if item is not None:
            self.waiting.serve(item)
            self.served.add(item)
        return item

    def discard(self, item: T) -> None:
        """Forget an item that waits or is served."""
        self.waiting.discard(item)
        self.served.discard(item)


class ActiveClients:
    """Which clients have sent work within `ACTIVE_S`. A client that is alone may take all of what is shared.

    Args:
        left: while other clients are active, one client may take all but `1 / left` of what is shared (4: three
            quarters).
        clock: seconds.
    """

    def __init__(self, left: int, clock: Callable[[], float]) -> None:
        self._left = left
        self._clock = clock
        self._seen_at: dict[str, float] = {}

    def add(self, client: str) -> None:
        """Record that a client sends work, also if it is refused."""
        self._seen_at[client] = self._clock()

    def is_alone(self, client: str) -> bool:
        """Whether no other client has sent work."""
        since = self._clock() - ACTIVE_S
        return all(at <= since for other, at in self._seen_at.items() if other != client)

    def share(self, client: str, num: int) -> int:
        """How many of `num` the client may take."""
        return num if self.is_alone(client) else num - num // self._left


class Places:
    """Decides whether work is accepted: a client may take all places while it is alone. From another client's request,
    also a refused one, until `ACTIVE_S` later it is refused beyond `max_per_client`. Work that is accepted stays.

    Args:
        num: places in all.
        max_per_client: None: three quarters of them, rounded up.
        what: the work, in the plural, for messages.
        setting: that of `max_per_client`, for messages; empty: there is none.
        clock: seconds.
    """

    def __init__(
        self,
        num: int,
        max_per_client: int | None = None,
        *,
        what: str,
        setting: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num = num
        self._max_per_client = max_per_client
        self._what = what
        self._hint = f" ({setting})" if setting else ""
        self._active = ActiveClients(4, clock)

    def require(self, client: str, taken: Counter[str], num: int = 1) -> None:
        """Ask for `num` places. A request for more places than exist is accepted while nothing else holds one.

        Args:
            taken: the places of each client.

        Raises:
            KeyPlacesTaken: the client holds its whole share. Checked first, since free places would not help it.
            Overloaded: they are not free.
        """
        self._active.add(client)
        share = self._share(client)
        if share < self._num and taken[client] and taken[client] + num > share:
            raise KeyPlacesTaken(
                f"This API key has {share} places in the queue of {self._what}, all taken, while other "
                f"keys send work; try again later{self._hint}."
            )
        if taken.total() and taken.total() + num > self._num:
            raise Overloaded(f"The queue of {self._what} is full; try again later.")

    def num_free(self, client: str, taken: Counter[str]) -> int:
        """How many more places the client would get now."""
        return max(0, min(self._share(client) - taken[client], self._num - taken.total()))

    def _share(self, client: str) -> int:
        share = self._active.share(client, self._num)
        return share if share == self._num or self._max_per_client is None else self._max_per_client
