"""The places of edits that end with their connection."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.edits.fairness import Places


class EditPlaces:
    """The places of edits that end with their connection: as many in one ingress replica as may wait for one engine.

    Args:
        max_edits: places in all.
    """

    def __init__(self, max_edits: int) -> None:
        self._places = Places(max_edits, what="edits")
        self._taken: Counter[str] = Counter()

    @contextmanager
    def take(self, client: str, num_edits: int) -> Iterator[None]:
        """Take places, from before the pictures are prepared until the edits have ended.

        Raises:
            Overloaded: they are not free.
        """
        self._places.require(client, self._taken, num_edits)
        self._taken[client] += num_edits
        try:
            yield
        finally:
            self._taken[client] -= num_edits
