"""Pictures of ended jobs, rendered once for all requests of a client that need the same ones. They are fetched from
Jobs, unless they came with the job's end."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from cachetools import TTLCache

from serve_app.edits.job import Job, JobsPort
from serve_app.errors import Overloaded
from serve_app.ingress.auth import CLIENT
from serve_app.ingress.limits.budget import OUTGOING_WAIT_S, RESPONSE_BYTES, num_base64_bytes

T = TypeVar("T")

MAX_RENDERED = 4
"""Jobs that are fetched and rendered at once."""
MAX_JOBS_PER_CLIENT = 2
"""Jobs of one API key from the fetch of their pictures, or from their end where they came with it, until their
responses fit into the budget of `budget.py`."""
CACHE_BYTES = 64 * 2**20
CACHE_S = 5.0


@dataclass(eq=False)
class _Shared:
    """What requests wait for together. `task` keeps their client's place until the last of them leaves."""

    value: "asyncio.Future[Any]"
    task: "asyncio.Task[None]"
    num_requests: int = 0


class JobBodies:
    """Lives on one event loop."""

    def __init__(self, jobs: JobsPort, wait_s: float = OUTGOING_WAIT_S) -> None:
        self._jobs = jobs
        self._wait_s = wait_s
        self._shared: dict[Hashable, _Shared] = {}
        self._rendering = asyncio.Semaphore(MAX_RENDERED)
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._cache: TTLCache[Hashable, bytes] = TTLCache(CACHE_BYTES, CACHE_S, getsizeof=len)
        self._given: Counter[str] = Counter()  # jobs that `body` was given and that are not answered yet, by client

    async def body(
        self, job_id: str, form: str, render: Callable[[Job], bytes], given: list[Job] | None = None
    ) -> bytes:
        """A COMPLETED job's response body, whose bytes are reserved for the current request. Such a job never changes,
        so its id and `form`, which names what `render` makes of it, are the key.

        Args:
            given: the job with its outcomes, if they are here already; only while `renders_at_once`. It is removed from
                the list when it is rendered, so that its memory is free while the response waits for the budget.

        Raises:
            Overloaded: too many large responses wait.
            ServiceError: the job cannot be read.
        """
        client, key, num_given = CLIENT.get(), (job_id, form), len(given or ())
        self._given[client] += num_given
        try:
            return await self._share(key, lambda: self._body(key, job_id, render, given), len)
        finally:
            self._given[client] -= num_given
            self._given += Counter()  # removes zero counts

    @property
    def renders_at_once(self) -> bool:
        """Whether a job of the current client would be rendered now. Else its pictures should not be kept meanwhile."""
        client = CLIENT.get()
        if self._given.total() >= MAX_RENDERED or self._given[client] >= MAX_JOBS_PER_CLIENT:
            return False
        return not (self._rendering.locked() or self._place(client).locked())

    async def job(self, job_id: str) -> Job:
        """A COMPLETED job with its outcomes, for a stream; the bytes of its events are reserved. Errors as `body`."""
        return await self._share((job_id,), lambda: self._jobs.read(job_id), lambda job: num_base64_bytes(job.outcomes))

    async def _body(self, key: Hashable, job_id: str, render: Callable[[Job], bytes], given: list[Job] | None) -> bytes:
        body = self._cache.get(key)
        if body is None:
            body = await asyncio.to_thread(render, given.pop() if given else await self._jobs.read(job_id))
            if len(body) <= CACHE_BYTES:
                self._cache[key] = body
                asyncio.get_running_loop().call_later(CACHE_S, self._cache.expire)
        return body

    async def _share(self, key: Hashable, make: Callable[[], Awaitable[T]], size: Callable[[T], int]) -> T:
        client = CLIENT.get()
        # Not shared by clients: the requests that wait for one's place are its own.
        key = client, key
        if (shared := self._shared.get(key)) is None:
            shared = self._shared[key] = self._begun(client, make)
        shared.num_requests += 1
        try:
            value: T = await asyncio.shield(shared.value)
            await RESPONSE_BYTES.get().reserve(size(value))
            return value
        finally:
            shared.num_requests -= 1
            if shared.num_requests == 0:
                del self._shared[key]
                shared.task.cancel()

    def _begun(self, client: str, make: Callable[[], Awaitable[Any]]) -> _Shared:
        value: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        value.add_done_callback(lambda done: done.cancelled() or done.exception())  # the requests may have left
        # In the context of the first request, Serve would cancel the call of Jobs when that request's client leaves.
        return _Shared(value, asyncio.create_task(self._make(client, make, value), context=Context()))

    async def _make(self, client: str, make: Callable[[], Awaitable[Any]], value: "asyncio.Future[Any]") -> None:
        try:
            async with self._held_place(client):
                async with self._rendering:
                    value.set_result(await make())
                await asyncio.Event().wait()  # until the last request leaves
        except Exception as problem:
            value.set_exception(problem)

    def _place(self, client: str) -> asyncio.Semaphore:
        return self._places.setdefault(client, asyncio.Semaphore(MAX_JOBS_PER_CLIENT))

    @asynccontextmanager
    async def _held_place(self, client: str) -> AsyncIterator[None]:
        places = self._place(client)
        try:
            async with asyncio.timeout(self._wait_s):
                await places.acquire()
        except TimeoutError:
            raise Overloaded(
                f"The results of {MAX_JOBS_PER_CLIENT} other jobs of this API key wait to be read. Read them, request "
                "fewer at once, and try again."
            ) from None
        try:
            yield
        finally:
            places.release()
