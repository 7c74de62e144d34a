"""Room in the queue of jobs: no more requests are prepared than it takes."""

import asyncio
from typing import cast

import pytest

from serve_app.edits.job import JobsPort
from serve_app.errors import Overloaded
from serve_app.ingress.room import FULL_S, Room


class Queue:
    """A queue with places, and a clock."""

    def __init__(self, num_places: int) -> None:
        self.num_places = num_places
        self.num_questions = 0
        self.now = 100.0
        self.room_for_it = Room(cast(JobsPort, self), clock=lambda: self.now)

    async def room(self) -> int:
        self.num_questions += 1
        await asyncio.sleep(0)  # as over a handle
        return self.num_places

    async def is_let_in(self) -> bool:
        """Whether a client's request was prepared and queued."""
        try:
            async with self.room_for_it.place():
                await asyncio.sleep(0)
        except Overloaded:
            return False
        self.num_places -= 1
        return True


def test_what_is_being_prepared_counts() -> None:
    async def story() -> None:
        queue = Queue(2)
        async with queue.room_for_it.place(), queue.room_for_it.place():
            assert not await queue.is_let_in()
            queue.now += FULL_S
            assert not await queue.is_let_in()

    asyncio.run(story())


def test_of_many_at_once_as_many_are_let_in_as_there_is_room_for_two_questions() -> None:
    async def story() -> None:
        queue = Queue(3)
        assert (await asyncio.gather(*(queue.is_let_in() for _ in range(20)))).count(True) == 3
        assert queue.num_questions == 2

    asyncio.run(story())


def test_a_place_that_was_just_made_is_found_at_once() -> None:
    async def story() -> None:
        queue = Queue(1)
        for _ in range(3):
            assert await queue.is_let_in()
            queue.num_places += 1  # The job is done.

    asyncio.run(story())


def test_a_full_queue_is_asked_once_in_a_while() -> None:
    async def story() -> None:
        queue = Queue(0)
        assert [await queue.is_let_in() for _ in range(5)] == [False] * 5
        assert queue.num_questions == 1
        queue.num_places = 1
        queue.now += FULL_S / 2
        assert not await queue.is_let_in()
        queue.now += FULL_S / 2
        assert await queue.is_let_in()

    asyncio.run(story())


def test_a_request_that_fails_gives_its_place_back() -> None:
    async def story() -> None:
        queue = Queue(1)
        with pytest.raises(ValueError, match="bad picture"):
            async with queue.room_for_it.place():
                raise ValueError("bad picture")
        assert await queue.is_let_in()

    asyncio.run(story())
