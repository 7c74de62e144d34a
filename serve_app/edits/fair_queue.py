"""A queue of work of several clients: round-robin by client, each client's items in their order."""

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar


class Queued(Protocol):
    """What can wait in a FairQueue."""

    @property
    def client(self) -> str: ...

    @property
    def is_low_priority(self) -> bool: ...

    @property
    def rank(self) -> float:
        """Place among its client's items: the one with the smallest rank is next."""


Item = TypeVar("Item", bound=Queued)


class FairQueue(Generic[Item]):
    """The next item is one of the client that was served least recently, so a client that queues many delays the others
    by one each. Low-priority items yield to all others until they are as old as their rank says.

    Args:
        clock: in the unit of the ranks of low-priority items.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._items: list[Item] = []
        # Kept for clients without waiting items: one that always has a single item must not come first each time. There
        # are as many as API keys.
        self._served_at: dict[str, int] = {}
        self._num_served = 0

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def add(self, item: Item) -> None:
        self._items.append(item)

    def discard(self, item: Item) -> None:
        if item in self._items:
            self._items.remove(item)

    def pop(self, may_be_next: Callable[[Item], bool] = lambda _: True) -> Item:
        """Remove and return the next item.

        Args:
            may_be_next: items for which it is False go on waiting, as if they had not been added yet.

        Raises:
            ValueError: no such item waits.
        """
        now = self._clock()
        item = min(filter(may_be_next, self._items), key=lambda item: self._order(item, now))
        self._items.remove(item)
        self._num_served += 1
        self._served_at[item.client] = self._num_served
        return item

    def _order(self, item: Item, now: float) -> tuple[bool, int, float]:
        yields = item.is_low_priority and item.rank > now
        return yields, self._served_at.get(item.client, 0), item.rank
