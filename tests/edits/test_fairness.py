"""How clients share turns, slots and places."""

from collections import Counter
from dataclasses import dataclass

import pytest

from serve_app.edits.fairness import ACTIVE_S, FairQueue, Places, Slots
from serve_app.errors import Overloaded


@dataclass(eq=False)
class Item:
    """An item whose client is the first letter of its name."""

    name: str
    rank: float = 0.0
    is_low_priority: bool = False

    @property
    def client(self) -> str:
        return self.name[:1]


def served(queue: FairQueue[Item]) -> Item:
    item = queue.next()
    assert item is not None
    queue.serve(item)
    return item


def order(queue: FairQueue[Item]) -> list[str]:
    return [served(queue).name for _ in range(len(queue))]


def test_clients_take_turns_and_each_keeps_its_order() -> None:
    queue = FairQueue[Item](lambda: 100.0)
    for rank, name in enumerate(["a2", "a1", "a3", "a4", "b1", "b2", "c1"]):
        queue.add(Item(name, rank))
    assert order(queue) == ["a2", "b1", "c1", "a1", "b2", "a3", "a4"]


def test_a_client_that_always_has_one_item_is_not_always_first() -> None:
    queue = FairQueue[Item](lambda: 100.0)
    for number in range(5):
        queue.add(Item(f"a{number}", number))
    clients = []
    for number in range(8):
        if number % 2 == 0:
            queue.add(Item(f"b{number}", 10 + number))
        clients.append(served(queue).client)
    assert "".join(clients) == "abababab"


def test_low_priority_yields_to_every_client_but_not_forever() -> None:
    now = 100.0
    queue = FairQueue[Item](lambda: now)
    for item in (Item("b1", 110.0, is_low_priority=True), Item("a1", 90.0), Item("a2", 91.0), Item("a3", 92.0)):
        queue.add(item)
    assert [served(queue).name for _ in range(2)] == ["a1", "a2"]
    now = 110.0
    assert order(queue) == ["b1", "a3"]


def test_an_item_that_leaves_the_queue_is_not_served() -> None:
    queue = FairQueue[Item](lambda: 100.0)
    items = [Item("a1"), Item("b1")]
    for item in items:
        queue.add(item)
    for _ in range(2):
        queue.discard(items[0])
    assert order(queue) == ["b1"]
    assert queue.next() is None


def slots_of(num: int, *names: str) -> Slots[Item]:
    """Slots and what waits for them, as many as possible served."""
    slots = Slots[Item](num, lambda: 100.0)
    for rank, name in enumerate(names):
        slots.waiting.add(Item(name, rank))
    start_all(slots)
    return slots


def start_all(slots: Slots[Item]) -> None:
    while slots.start_next() is not None:
        pass


def names(slots: Slots[Item]) -> list[str]:
    return sorted(item.name for item in slots.served)


@pytest.mark.parametrize(("num", "of_one"), [(1, 1), (7, 7), (8, 7), (64, 56)])
def test_an_eighth_of_the_slots_is_kept_from_each_client(num: int, of_one: int) -> None:
    slots = slots_of(num, *(f"a{number:03}" for number in range(100)))
    assert len(slots.served) == of_one
    for number in range(100):
        slots.waiting.add(Item(f"b{number:03}", number))
    start_all(slots)
    assert len(slots.served) == num
    assert Counter(item.client for item in slots.served)["b"] == num - of_one


def test_without_keys_all_slots_are_used() -> None:
    assert len(slots_of(8, *[""] * 20).served) == 8


def test_a_slot_that_becomes_free_goes_to_the_client_whose_turn_it_is() -> None:
    slots = slots_of(2, "a1", "a2", "a3", "b1", "b2")
    assert names(slots) == ["a1", "b1"]
    slots.discard(next(item for item in slots.served if item.name == "b1"))
    start_all(slots)
    assert names(slots) == ["a1", "a2"]
    slots.discard(next(item for item in slots.waiting if item.name == "b2"))
    slots.discard(next(item for item in slots.served if item.name == "a1"))
    start_all(slots)
    assert names(slots) == ["a2", "a3"]


class Office:
    """Places, who has taken how many, and a clock."""

    def __init__(self, num: int, max_per_client: int | None = None) -> None:
        self.now = 0.0
        self.taken: Counter[str] = Counter()
        self._places = Places(num, max_per_client, what="jobs", setting="jobs.limit", clock=lambda: self.now)

    def num_accepted(self, client: str, num_requests: int, num: int = 1) -> int:
        return sum(self.is_accepted(client, num) for _ in range(num_requests))

    def is_accepted(self, client: str, num: int = 1) -> bool:
        try:
            self._places.require(client, self.taken, num)
        except Overloaded as problem:
            self.message = problem.message
            return False
        self.taken[client] += num
        return True


def test_a_client_alone_takes_all_places() -> None:
    office = Office(9)
    assert office.num_accepted("anna", 200) == 9
    assert office.message == "The queue of jobs is full; try again later."


def test_beside_another_client_it_takes_its_part() -> None:
    office = Office(8)
    assert office.is_accepted("otto")
    assert office.num_accepted("anna", 200) == 6
    assert "jobs.limit" in office.message
    assert office.num_accepted("otto", 200) == 1
    assert "is full" in office.message


def test_a_client_that_finds_all_taken_gets_the_next_places() -> None:
    office = Office(8, 4)
    assert office.num_accepted("anna", 200) == 8
    assert not office.is_accepted("otto")
    office.taken["anna"] -= 1
    assert not office.is_accepted("anna")
    assert office.is_accepted("otto")
    office.now += ACTIVE_S
    office.taken["anna"] -= 1
    assert office.is_accepted("anna")


def test_a_request_for_more_than_there_are_is_accepted_alone() -> None:
    office = Office(8)
    assert office.is_accepted("anna", 16)
    assert not office.is_accepted("otto")
    office.taken.clear()
    assert office.num_accepted("otto", 9, 4) == 1  # anna is active
    assert office.num_accepted("anna", 9, 4) == 1
