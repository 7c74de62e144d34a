"""The order in which clients' edits follow each other."""

import heapq
from collections.abc import Mapping

from serve_app.editor.engine.edit import Edit

Ranked = tuple[tuple[float, ...], int, Edit]
"""An edit with its rank among its client's edits, the smallest is next, and a number that no other one has."""


def in_turn(
    of_client: Mapping[tuple[int, str], list[Ranked]], served: Mapping[str, float], *, counts_work: bool
) -> list[Edit]:
    """All edits: those of the smallest group first, and of a group those of the client that was served least so far,
    each one that precedes in this order included.

    Args:
        of_client: the edits by group and client.
        served: token-steps of each client.
        counts_work: add the work of a client's next edit to what the client was served.
    """
    turns: list[tuple[int, float, Ranked, float, list[Ranked]]] = []

    def push(group: int, so_far: float, own: list[Ranked]) -> None:
        work = own[-1][-1].work if counts_work else 0
        heapq.heappush(turns, (group, so_far + work, own[-1], so_far, own))

    for (group, client), own in of_client.items():
        push(group, served[client], sorted(own, reverse=True))
    order = []
    while turns:
        group, _, (_, _, edit), so_far, own = heapq.heappop(turns)
        order.append(edit)
        own.pop()
        if own:
            push(group, so_far + edit.num_tokens, own)
    return order
