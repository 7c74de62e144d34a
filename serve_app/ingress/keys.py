"""Who may ask: API keys, from the environment and from a file that may change while the service runs."""

import hmac
import ipaddress
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import ConfigError, StartupError, Unauthorized
from serve_app.ingress.refusals import refusal

logger = logging.getLogger(__name__)

KEYS_VARIABLE = "CAMERA_EDIT_API_KEYS"
"""Keys, separated by commas."""

FILE_VARIABLE = "CAMERA_EDIT_API_KEYS_FILE"
"""A file with one key per line, such as a mounted Secret; it goes before the setting `api_keys_file`."""

OPEN_PATHS = frozenset({"/health/live"})
"""What is answered without a key: it tells nothing but that the process lives."""

CHECK_EVERY_S = 1.0

Keys = Callable[[], Sequence[bytes]]
"""The keys that may call at this moment."""


class KeyFile:
    """Keys from a file, read again when it has changed. While it is missing, unreadable or empty it has no keys.

    Args:
        path: one key per line; blank lines do not count.
        clock: seconds; the file is looked at no more than once in `CHECK_EVERY_S`.

    Raises:
        ConfigError: there is no key in it now.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._state = ""
        self._next_look_at = 0.0
        self._keys: tuple[bytes, ...] = ()
        self._look()
        if not self._keys:
            raise ConfigError(f"The file of API keys {path} cannot be read or holds no key; write one key per line.")

    def __call__(self) -> tuple[bytes, ...]:
        if self._clock() >= self._next_look_at:
            self._look()
        return self._keys

    def _look(self) -> None:
        self._next_look_at = self._clock() + CHECK_EVERY_S
        try:
            stat = self._path.stat()
            # Not the time alone: a mounted Secret changes by another file in its place.
            state = f"{stat.st_mtime_ns} {stat.st_ino} {stat.st_size}"
            if state != self._state:
                self._take(self._path.read_bytes(), state)
        except OSError as problem:
            self._take(b"", str(problem))

    def _take(self, content: bytes, state: str) -> None:
        """Keys that were taken away must not go on working: without a line there is no key, and nobody is let in."""
        self._keys = tuple(key for line in content.splitlines() if (key := line.strip()))
        if not self._keys and state != self._state:
            logger.error("the file of API keys holds none, so it lets nobody in: %s (%s)", self._path, state)
        self._state = state


def configured_keys(setting: str | None) -> Keys | None:
    """The keys of the environment and of the file; None where neither is set.

    Args:
        setting: the path in `api_keys_file`.

    Raises:
        ConfigError: a file is named, and there is no key in it.
    """
    given = tuple(key.encode() for part in os.environ.get(KEYS_VARIABLE, "").split(",") if (key := part.strip()))
    path = os.environ.get(FILE_VARIABLE, "").strip() or setting
    if path is None:
        return (lambda: given) if given else None
    file = KeyFile(Path(path).expanduser())
    return lambda: (*given, *file())


def require_keys(keys: Keys | None, host: str, allow_anonymous: bool) -> None:
    """Return if the service may listen on `host` with these keys.

    Raises:
        StartupError: there are none, others than this machine could call, and nobody has said that they may.
    """
    if keys is None and not allow_anonymous and not is_loopback(host):
        raise StartupError(
            f"No API keys are set, and http_options.host {host} can be reached from other machines. "
            f"Set {KEYS_VARIABLE}=KEY,ANOTHER or {FILE_VARIABLE}=PATH in the environment of the nodes, "
            "or, to let anybody use the service, allow_anonymous: true among the application's args. "
            "A service for this machine alone needs neither with http_options.host: 127.0.0.1."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`. A name other than localhost may mean anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ApiKeys:
    """ASGI middleware: without one of the keys nothing is answered but 401, and `OPEN_PATHS`.

    Args:
        keys: None: anybody may ask. A callable that gives no keys: nobody may.
    """

    def __init__(self, app: ASGIApp, keys: Keys | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A scope of another type (a WebSocket) has no route here.
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._admits(Headers(scope=scope)):
            problem = Unauthorized("The API key is missing or wrong. Send it as `Authorization: Bearer KEY`.")
            await refusal(scope["path"], problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admits(self, headers: Headers) -> bool:
        """RunPod's clients send `Bearer KEY` or the bare key. Every key is compared, in constant time, as bytes."""
        if self._keys is None:
            return True
        given = headers.get("authorization", "").removeprefix("Bearer ").strip().encode("latin-1")
        return max((hmac.compare_digest(given, key) for key in self._keys()), default=False)
