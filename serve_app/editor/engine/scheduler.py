"""Edits on their way to the engine's thread: prepared beside it, then waiting in their order."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from serve_app.editor.engine.outbox import Outbox
from serve_app.editor.engine.running import Waiting, first_within
from serve_app.editor.engine.ticket import Ticket
from serve_app.editor.model.edit_model import Prepared
from serve_app.edits.request import EditRequest, Pictures
from serve_app.errors import Overloaded, ServiceUnavailable

Prepare = Callable[[EditRequest, Pictures], Prepared]


class Intake:
    """Any thread may submit; the engine's thread takes. Closed until it is opened.

    Args:
        max_waiting: edits that may be here; one more is refused.
        outbox: hears of edits that fail here.
        clock: seconds, by which an edit's place in the queue is taken.
    """

    def __init__(self, max_waiting: int, outbox: Outbox, clock: Callable[[], float]) -> None:
        self._max_waiting = max_waiting
        self._outbox = outbox
        self._clock = clock
        self._changed = threading.Condition()
        self._prepare: Prepare | None = None
        self._preparing: set[int] = set()
        self._waiting: list[Waiting] = []
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="prepare")

    def open(self, prepare: Prepare) -> None:
        """Take edits in from now on; `prepare` is called on the preparing thread."""
        self._prepare = prepare

    @property
    def is_open(self) -> bool:
        return self._prepare is not None

    def submit(self, ticket: Ticket) -> None:
        """Queue an edit.

        Raises:
            Overloaded: the queue is full.
            ServiceUnavailable: the engine takes no edits any more.
        """
        with self._changed:
            if self._prepare is None:
                raise ServiceUnavailable("The editor is shutting down; try again.")
            if len(self._preparing) + len(self._waiting) >= self._max_waiting:
                raise Overloaded(f"{self._max_waiting} edits are waiting already; try again later.")
            # From here on the engine alone ends this future: an asyncio task that awaits it would, when cancelled,
            # cancel it as well, and the engine could no longer tell its end.
            ticket.future.set_running_or_notify_cancel()
            ticket.submitted_at = self._clock()
            self._preparing.add(id(ticket))
            self._preparer.submit(self._enqueue, ticket)

    def wait(self, busy: bool) -> bool:
        """Block until something waits, unless the caller is busy anyway; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: busy or self._waiting or not self.is_open)
            return self.is_open

    def take(self, room_tokens: int, *, at_least: int) -> list[Waiting]:
        """The next edits in their order, as many as there is room for, but `at_least` so many, if they are there."""
        with self._changed:
            taken = first_within(self._waiting, room_tokens, at_least=at_least)
            del self._waiting[: len(taken)]
        return taken

    def drop(self, now: float) -> list[Ticket]:
        """Take edits out that nobody waits for any more."""
        with self._changed:
            tickets = [waiting.ticket for waiting in self._waiting if waiting.ticket.unwanted(now)]
            self._waiting = [waiting for waiting in self._waiting if waiting.ticket not in tickets]
        return tickets

    def close(self) -> list[Ticket]:
        """Refuse edits from now on; returns those that wait. Those that are being prepared are failed here."""
        with self._changed:
            self._prepare = None
            tickets = [waiting.ticket for waiting in self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        return tickets

    def join(self) -> None:
        """Wait for the preparing thread's end."""
        self._preparer.shutdown()

    @property
    def counts(self) -> dict[str, int]:
        """By the names of EngineStats."""
        with self._changed:
            return {"preparing": len(self._preparing), "waiting": len(self._waiting)}

    # The preparing thread

    def _enqueue(self, ticket: Ticket) -> None:
        problem: Exception | None = None
        try:
            prepared = self._prepared(ticket)
        except Exception as caught:
            problem = caught
        with self._changed:
            self._preparing.discard(id(ticket))
            if problem is None and self.is_open:
                self._waiting.append(Waiting(ticket, prepared))
                self._waiting.sort(key=lambda waiting: waiting.ticket.rank)
                self._changed.notify_all()
                return
        self._outbox.failed(ticket, stopped() if problem is None else problem)

    def _prepared(self, ticket: Ticket) -> Prepared:
        prepare = self._prepare
        if prepare is None:
            raise stopped()
        return prepare(ticket.request, ticket.pictures)


def stopped() -> ServiceUnavailable:
    """For an edit that the engine leaves undone, but that another one may do."""
    return ServiceUnavailable("The editor stopped before this edit was done; try again.")
