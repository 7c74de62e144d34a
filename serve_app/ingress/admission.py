"""Admission: which work is accepted, and what a full queue answers. `throughput.py` computes how long a rejected client
should wait.

The rule: work takes a place before its pictures are decoded and keeps it until its end. Without a free place it is
answered with 429 and Retry-After. All clients share the places; while several send work, one of them gets three
quarters at most (`Places` in `edits/fairness.py`, which decides for both kinds of work).

- A job's place is in the Jobs replica (`jobs/places.py`), which alone decides: `JobsPort.reserve` before the pictures
  are decoded, `submit` with them. It also refuses a client for whom the store is full. `reserve` allows an ingress
  replica to prepare at once, without it, as many more jobs as a quarter of the free places. Should several replicas
  take the last places in this way, such a job is refused when it is submitted.
- Edits without a job have their places in their ingress replica (`EditPlaces` in `limits/edit_places.py`).
- A job whose Idempotency-Key is known needs no place.
- A client whose job was refused within `FULL_S` is refused before its next body is read (`JobAdmission.refuse_early`).
- While several clients send work, the requests of one of them begin at a limited rate (`PacedWork` in
  `limits/pace.py`): others wait, before their bodies are parsed. Without this a client that submits, or submits and
  cancels, as fast as it can would take all of a small machine's CPU time. A refused request does not count.

The 429 says `overloaded` where all places are taken, `key_places_taken` where the client has its part, `store_full`
where its pictures would not fit.

Every other 429 is of one of two kinds:

- Repeats of these refusals, without asking Jobs: `QueuePlaces` repeats one to its client for `FULL_S`, and the proxy
  repeats `overloaded` to all clients and `key_places_taken` to its own (`QueueFullMiddleware` in `ingress/proxy.py`).
- Limits of other resources: the proxy limits open requests and the bytes of their bodies (`limits/requests.py`), the
  ingress the bytes of responses (`limits/responses.py`). Serve limits the queue of each deployment
  (`max_queued_requests`) and the engine its own (`max_waiting_edits`); work within the places reaches these limits only
  where several ingress replicas share few editors. A job that they refuse waits in Jobs and is tried again.
"""

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from serve_app.edits.images import decode_base64
from serve_app.edits.job import JobSpec, JobsPort, Policy, RepeatKey
from serve_app.edits.service import Deadline
from serve_app.errors import InvalidInput, Overloaded, RepeatKeyConflict, ServiceError, ServiceUnavailable
from serve_app.ingress.auth import CLIENT, KEY_NAME
from serve_app.ingress.backend import DRAINS, Backend
from serve_app.ingress.pictures.prepare import ParsedRequest, PictureSource

logger = logging.getLogger(__name__)

# One thread, since decoding base64 holds the interpreter's lock, for which the event loop waits.
_HASHING = ThreadPoolExecutor(1, thread_name_prefix="hash")

FULL_S = 0.1
"""For how long the queue is assumed to be full for a client whose job it refused."""

UNRESERVED_S = 1.0
"""For how long `JobsPort.reserve` allows jobs that are not reserved."""


class JobAdmission:
    """Turns parsed requests of either dialect into jobs."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._places = QueuePlaces(backend.jobs)

    async def refuse_early(self, key: str | None) -> None:
        """Before a body is read, refuse what would find no place anyway: the client's last job was refused just now,
        and no job is kept under this key.

        Args:
            key: the Idempotency-Key, or None.

        Raises:
            Overloaded: as the last job of the client.
        """
        problem = None if self._backend.draining.begun else self._places.refusal(CLIENT.get())
        if problem is not None and not (key is not None and await self._is_known(key)):
            raise problem

    async def _is_known(self, key: str) -> bool:
        try:
            return await self._backend.jobs.find(RepeatKey(_own(key), "")) is not None
        except RepeatKeyConflict:
            return True  # of another request than an empty one

    async def find_or_submit(
        self,
        job_id: str,
        parsed: ParsedRequest,
        deadline: Deadline,
        policy: Policy,
        retention_s: float,
        *,
        key: str | None,
        fields: str,
        webhook: str | None = None,
        input_without_pictures: Mapping[str, Any] | None = None,
    ) -> JobSpec:
        """Submit a job, or find the one that the same Idempotency-Key made before. A known job is found before any
        picture is decoded, and also while the service drains or the queue is full: its client has no other way to the
        result.

        Args:
            job_id: of the job, if it is new.
            policy: of the job; the deadline is added here.
            key: the Idempotency-Key, or None.
            fields: the request without its pictures, as canonical JSON.
            webhook: as in JobSpec; so is `input_without_pictures`.

        Raises:
            ServiceError: the job was not accepted.
        """
        jobs, repeat_key = self._backend.jobs, None
        if key is not None:
            repeat_key = await self._repeat_key(key, fields, chain.from_iterable(parsed.picture_sets))
            if (known := await self._find(repeat_key)) is not None:
                return known
        if self._backend.draining.begun:
            raise ServiceUnavailable(DRAINS)
        client = CLIENT.get()
        async with self._places.hold(job_id, client):
            prepared = await deadline.bound(self._backend.prepare(job_id, parsed))
            spec = JobSpec(
                id=job_id,
                edits=prepared.edits,
                pictures_of=prepared.pictures_of,
                seed=parsed.edits[0].sampling.seed,
                policy=replace(policy, timeout_s=deadline.timeout_s, spent_s=deadline.spent_s),
                retention_s=retention_s,
                webhook=webhook,
                input_without_pictures=input_without_pictures,
                repeat_key=repeat_key,
                client=client,
            )
            accepted = replace(spec, id=await deadline.bound(jobs.submit(spec, prepared.pictures)))
        _log_accepted(accepted, repeated=accepted.id != job_id)
        return accepted

    async def find_invalid(self, key: str | None, fields: str, pictures: Iterable[PictureSource]) -> JobSpec | None:
        """The job that the same request made before it became invalid: adapters and limits change. None: there is none.

        Args:
            key, fields: as in `find_or_submit`.
            pictures: of the request, in order.

        Raises:
            ServiceUnavailable: the jobs do not answer.
        """
        if key is None:
            return None
        try:
            return await self._find(await self._repeat_key(key, fields, pictures))
        except (InvalidInput, RepeatKeyConflict):  # the fault that was found first is reported
            return None

    async def _find(self, repeat_key: RepeatKey) -> JobSpec | None:
        known = await self._backend.jobs.find(repeat_key)
        if known is not None:
            _log_accepted(known, repeated=True)
        return known

    async def _repeat_key(self, key: str, fields: str, pictures: Iterable[PictureSource]) -> RepeatKey:
        most = self._backend.settings.limits.max_picture_bytes
        loop = asyncio.get_running_loop()
        return RepeatKey(_own(key), await loop.run_in_executor(_HASHING, fingerprint_of, fields, [*pictures], most))


def _own(key: str) -> str:
    """An Idempotency-Key as it is stored: each client has its own ones. Neither part holds a line break."""
    client = CLIENT.get()
    return f"{client}\n{key}" if client else key


def fingerprint_of(fields: str, pictures: Iterable[PictureSource], max_picture_bytes: int) -> str:
    """A hex digest that is equal for requests for the same edits, however they were encoded. Hashes all bytes of the
    pictures, so it must not run on an event loop.

    Args:
        fields: the request without its pictures, as canonical JSON.
        pictures: hashed as bytes, so that the encoding of base64 and its line breaks do not count; a URL is hashed as
            text.

    Raises:
        InvalidInput: a picture is not valid base64, or too large.
    """
    digest = hashlib.sha256(fields.encode())
    for source in pictures:
        content = source.content
        if isinstance(content, str):
            content = content.encode() if source.url else decode_base64(content, source.field, max_picture_bytes)
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _log_accepted(spec: JobSpec, *, repeated: bool) -> None:
    """Serve adds the request id of the HTTP request. The key's name is that of the current request."""
    size, key_name = spec.edits[0].size.final, KEY_NAME.get()
    logger.info(
        "job %s taken: num_edits=%d num_picture_sets=%d size=%dx%d num_steps=%d%s%s",
        spec.id,
        len(spec.edits),
        max(spec.pictures_of) + 1,
        size.width,
        size.height,
        spec.edits[0].sampling.num_inference_steps,
        " repeated=true" if repeated else "",
        f" key={key_name}" if key_name else "",
    )


@dataclass
class _Unreserved:
    """What `JobsPort.reserve` has returned to a client.

    Attributes:
        until: for how long it is valid, by the clock.
        most_at_once: jobs of all clients together that may be in preparation without a place.
        num_left: of this client, in all.
    """

    until: float
    most_at_once: int
    num_left: int


class QueuePlaces:
    """Holds places in the queue of jobs while requests are prepared. A refusal is remembered for its client for
    `FULL_S`, so that a client that goes on costs the Jobs replica little. Lives on one event loop."""

    def __init__(self, jobs: JobsPort, clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs = jobs
        self._clock = clock
        self._refused: dict[str, tuple[float, Overloaded]] = {}
        self._unreserved: dict[str, _Unreserved] = {}
        self._num_unreserved = 0  # jobs in preparation without a place
        self._releasing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def hold(self, job_id: str, client: str) -> AsyncIterator[None]:
        """Hold a place while a job is prepared and submitted; where that fails, it is released. No place is held while
        Jobs has said that many are free.

        Raises:
            Overloaded: the client gets none.
        """
        if (recent := self.refusal(client)) is not None:
            raise recent
        is_held = not self._takes_unreserved(client)
        try:
            if is_held:
                most = await self._jobs.reserve(job_id, client)
                self._unreserved[client] = _Unreserved(self._clock() + UNRESERVED_S, most, most)
            yield
        except BaseException as problem:
            self._unreserved.pop(client, None)
            if isinstance(problem, Overloaded):
                self._refused[client] = self._clock() + FULL_S, problem
            elif is_held:
                # Not awaited: the client waits for its answer, or has left.
                task = asyncio.create_task(self._release(job_id))
                self._releasing.add(task)
                task.add_done_callback(self._releasing.discard)
            raise
        finally:
            if not is_held:
                self._num_unreserved -= 1

    def _takes_unreserved(self, client: str) -> bool:
        """Take one of the client's unreserved jobs, if there is one left."""
        allowed = self._unreserved.get(client)
        if allowed is None or self._clock() >= allowed.until:
            return False
        if allowed.num_left == 0 or self._num_unreserved >= allowed.most_at_once:
            return False
        allowed.num_left -= 1
        self._num_unreserved += 1
        return True

    def refusal(self, client: str) -> Overloaded | None:
        """What the client's last job was refused with, if that was just now."""
        until, problem = self._refused.get(client, (-math.inf, None))
        return None if problem is None or self._clock() >= until else type(problem)(problem.message)

    async def _release(self, job_id: str) -> None:
        with suppress(ServiceError):  # The place is free again after a while.
            await self._jobs.release(job_id)
