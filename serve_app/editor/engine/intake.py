"""Takes edits in: accepts or refuses them, and prepares them on a thread of its own, clients in turn."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from serve_app.editor.engine.edit import Edit
from serve_app.editor.engine.outbox import Outbox
from serve_app.editor.engine.scheduler import Scheduler
from serve_app.editor.engine.ticket import Ticket
from serve_app.editor.model.edit_model import Prepared
from serve_app.edits.fairness import FairQueue
from serve_app.edits.request import EditRequest, Pictures
from serve_app.errors import Overloaded, ServiceUnavailable

Prepare = Callable[[EditRequest, Pictures], Prepared]


class Intake:
    """Hands prepared edits to the scheduler. It refuses edits until it is opened.

    Args:
        max_waiting: edits that may wait or be prepared; one more is refused.
        outbox: takes the edits that fail while they are prepared.
        clock: seconds.
    """

    def __init__(self, scheduler: Scheduler, max_waiting: int, outbox: Outbox, clock: Callable[[], float]) -> None:
        self._scheduler = scheduler
        self._max_waiting = max_waiting
        self._outbox = outbox
        self._clock = clock
        self._prepare: Prepare | None = None
        self._num_preparing = 0
        self._queue = FairQueue[Ticket](clock)
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="prepare")

    def open(self, prepare: Prepare) -> None:
        """Accept edits from now on; `prepare` is called on the preparing thread."""
        self._prepare = prepare

    def submit(self, ticket: Ticket) -> None:
        """Queue an edit.

        Raises:
            Overloaded: the queue is full.
            ServiceUnavailable: closed.
        """
        with self._scheduler.changed:
            if self._prepare is None:
                raise ServiceUnavailable("The editor is shutting down; try again.")
            if self._num_preparing + self._scheduler.num_waiting >= self._max_waiting:
                raise Overloaded(f"{self._max_waiting} edits are waiting already; try again later.")
            # From here on the engine alone ends this future. An asyncio task that awaits a future cancels it when it
            # is cancelled itself, and the engine could no longer set its result.
            ticket.future.set_running_or_notify_cancel()
            ticket.submitted_at = self._clock()
            self._num_preparing += 1
            self._queue.add(ticket)
            self._preparer.submit(self._prepare_next)

    def close(self) -> None:
        """Refuse edits from now on. Those that are being prepared fail when that is done."""
        with self._scheduler.changed:
            self._prepare = None

    def join(self) -> None:
        """Wait for the preparing thread's end."""
        self._preparer.shutdown()

    @property
    def num_preparing(self) -> int:
        """Edits that are being prepared or wait for it."""
        return self._num_preparing

    def _prepare_next(self) -> None:
        prepared, problem = None, None
        with self._scheduler.changed:
            prepare, ticket = self._prepare, self._queue.next()
            if ticket is None:
                return
            self._queue.serve(ticket)
        try:
            if prepare is not None:
                prepared = prepare(ticket.request, ticket.pictures)
        except Exception as caught:
            problem = caught
        with self._scheduler.changed:
            self._num_preparing -= 1
            if prepared is not None and self._prepare is not None:
                self._scheduler.add(Edit(ticket, prepared, prepared.schedule.num_steps))
                return
        self._outbox.failed(ticket, stopped() if problem is None else problem)


def stopped() -> ServiceUnavailable:
    """The error of an edit that the engine leaves undone, but that another one may do."""
    return ServiceUnavailable("The editor stopped before this edit was done; try again.")
