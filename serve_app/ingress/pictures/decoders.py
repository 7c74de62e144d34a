"""Processes that decode pictures. One that hangs, crashes or is no longer needed is killed and replaced."""

import asyncio
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from typing import ClassVar

from serve_app.config import LimitSettings, SizeSettings
from serve_app.edits.fairness import FairQueue
from serve_app.errors import InvalidInput, ServiceUnavailable
from serve_app.ingress.pictures.decode_worker import Decoded, StoredPicture, receive

logger = logging.getLogger(__name__)

_UNAVAILABLE = "Pictures cannot be decoded now; try again later."


class Decoder:
    """A process that decodes one picture at a time. Its methods block; `kill` may be called from another thread."""

    _is_ready: bool

    def __init__(self) -> None:
        self.is_killed = False
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Of the process, once it has ended; a negative number is a signal's."""
        return self._process.poll()

    def decode(self, pictures: Sequence[StoredPicture], limits: LimitSettings, sizes: SizeSettings) -> list[Decoded]:
        """One after the other, so that the process holds one decoded picture.

        Raises:
            InvalidInput: a picture is not accepted, takes too much time, or made the process crash.
            ServiceUnavailable: the process does not start.
        """
        if not self.is_killed:
            self._require_process()
        decoded: list[Decoded] = []
        for picture in pictures:
            answer = self._answer(picture, limits, sizes)
            if isinstance(answer, InvalidInput):
                raise answer
            decoded.append(answer)
        return decoded

    def kill(self) -> None:
        """End the process; a `decode` that runs or begins then raises InvalidInput, until `revive`."""
        self.is_killed = True
        self._process.kill()

    def revive(self) -> None:
        """Start another process if this one has ended, and wait until it is ready.

        Raises:
            OSError, EOFError: it does not start.
        """
        if self.is_killed or self._process.poll() is not None:
            self.close()
            self.is_killed = False  # also if it does not start, which is no fault of the next pictures
            self._start()
        if not self._is_ready:
            receive(self._connection)
            self._is_ready = True

    def close(self) -> None:
        self.kill()
        self._process.wait()
        self._connection.close()

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        # Not multiprocessing's spawn, which imports the program's main module again, here Ray's worker.
        with theirs:
            self._process = subprocess.Popen(
                (sys.executable, "-m", f"{__package__}.decode_worker", str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                # As multiprocessing does: Ray adds the application's folder to sys.path only.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            )
        self._is_ready = False

    def _require_process(self) -> None:
        """The kernel may have ended it while it was idle, where memory is short."""
        try:
            self.revive()
        except (OSError, EOFError) as problem:
            logger.error("a decoder process does not start: %s", problem)
            raise ServiceUnavailable(_UNAVAILABLE) from None

    def _answer(self, picture: StoredPicture, limits: LimitSettings, sizes: SizeSettings) -> Decoded | InvalidInput:
        try:
            self._connection.send((picture, limits, sizes))
            answer: Decoded | InvalidInput = receive(self._connection)
            return answer
        except (EOFError, OSError):
            return self._death(picture.field, limits.decode_timeout_s)

    def _death(self, field: str, timeout_s: float) -> InvalidInput:
        code = self._process.wait()
        if code == -signal.SIGPROF:
            what = f"takes more than {timeout_s:g} s to decode"
        else:
            if not self.is_killed:
                logger.error("a decoder process ended with exit code %s while it decoded %s", code, field)
            what = "cannot be decoded"
        return InvalidInput(f"{field} {what}. Save it anew as a plain PNG or JPEG file, or make it smaller.", field)


@dataclass(eq=False)
class _Waiting:
    """A set of pictures to decode. `decoder`: the one that does so now."""

    client: str
    rank: float
    pictures: Sequence[StoredPicture]
    limits: LimitSettings
    sizes: SizeSettings
    decoded: "Future[list[Decoded]]" = field(default_factory=Future)
    decoder: Decoder | None = None
    is_low_priority: ClassVar[bool] = False


class DecoderPool:
    """Decodes sets of pictures, those of waiting clients in turn. Each process has a thread that passes pictures to it,
    so that several event loops may use the pool and none of them waits for a pipe.

    Args:
        num_decoders: sets of one client that are decoded at once. One process more serves only clients of which nothing
            is being decoded, so that slow pictures of one client never occupy all.
        start: starts a process.
    """

    def __init__(self, num_decoders: int, start: Callable[[], Decoder] = Decoder) -> None:
        self._queue: FairQueue[_Waiting] = FairQueue(lambda: 0.0)
        self._running: set[_Waiting] = set()
        self._num_idle = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._ranks = itertools.count()
        self.decoders = [start() for _ in range(num_decoders + 1)]
        self._threads = [
            threading.Thread(target=self._run, args=(decoder,), name="decode", daemon=True) for decoder in self.decoders
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_idle(self) -> int:
        """Processes that are ready and decode nothing."""
        return self._num_idle

    @property
    def busy(self) -> list[Decoder]:
        """Those that decode pictures now."""
        with self._changed:
            return [each.decoder for each in self._running if each.decoder is not None]

    async def decode(
        self, client: str, pictures: Sequence[StoredPicture], limits: LimitSettings, sizes: SizeSettings
    ) -> list[Decoded]:
        """When this is cancelled, the pictures leave the queue, or the process that decodes them is killed.

        Args:
            client: whose turn it is, `Key.client`.

        Raises:
            InvalidInput: a picture is not accepted; naming its field.
            ServiceUnavailable: decoder processes do not start, or the pool was closed.
        """
        waiting = _Waiting(client, next(self._ranks), pictures, limits, sizes)
        with self._changed:
            if self._is_closed:
                raise ServiceUnavailable(_UNAVAILABLE)
            self._queue.add(waiting)
            self._changed.notify_all()
        try:
            return await asyncio.wrap_future(waiting.decoded)
        except asyncio.CancelledError:
            self._cancel(waiting)
            raise

    def close(self) -> None:
        """End the processes. What waits or is decoded then raises ServiceUnavailable or InvalidInput."""
        with self._changed:
            self._is_closed = True
            for waiting in self._queue:
                if waiting.decoded.set_running_or_notify_cancel():
                    waiting.decoded.set_exception(ServiceUnavailable(_UNAVAILABLE))
            self._queue.clear()
            for decoder in self.decoders:
                decoder.kill()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _cancel(self, waiting: _Waiting) -> None:
        with self._changed:
            self._queue.discard(waiting)
            if waiting.decoder is not None:
                waiting.decoder.kill()

    def _run(self, decoder: Decoder) -> None:
        while self._decode_next(decoder):
            pass
        decoder.close()

    def _decode_next(self, decoder: Decoder) -> bool:
        """Decode the next set; False: the pool was closed. A method of its own, so that the thread keeps no pictures
        while it waits."""
        waiting = self._next(decoder)
        if waiting is None:
            return False
        try:
            decoded = decoder.decode(waiting.pictures, waiting.limits, waiting.sizes)
        except Exception as problem:
            self._release(waiting)
            waiting.decoded.set_exception(problem)
        else:
            self._release(waiting)
            waiting.decoded.set_result(decoded)
        return True

    def _next(self, decoder: Decoder) -> _Waiting | None:
        """The next set for an idle decoder; None: the pool was closed."""
        with suppress(OSError, EOFError):  # then `decode` tries again, and reports it
            decoder.revive()
        with self._changed:
            self._num_idle += 1
            while not self._is_closed:
                waiting = self._pop()
                if waiting is None:
                    self._changed.wait()
                elif waiting.decoded.set_running_or_notify_cancel():
                    self._num_idle -= 1
                    self._running.add(waiting)
                    waiting.decoder = decoder
                    return waiting
        return None

    def _pop(self) -> _Waiting | None:
        clients = {each.client for each in self._running}
        waiting = self._queue.next(lambda each: self._num_idle > 1 or each.client not in clients)
        if waiting is not None:
            self._queue.serve(waiting)
        return waiting

    def _release(self, waiting: _Waiting) -> None:
        """From now on, the decoder is not killed for this set."""
        with self._changed:
            waiting.decoder = None
            self._running.remove(waiting)
            self._changed.notify_all()  # an idle decoder may take the client's next set now
