"""API keys and operator keys: from the environment and from files, which may change while the service runs."""

import codecs
import hmac
import ipaddress
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import ConfigError, StartupError, Unauthorized
from serve_app.ingress.error_responses import refusal
from serve_app.ingress.route import route_path

logger = logging.getLogger(__name__)

KEYS_VARIABLE = "CAMERA_EDIT_API_KEYS"
"""Keys, separated by commas."""

FILE_VARIABLE = "CAMERA_EDIT_API_KEYS_FILE"
"""A file with one key per line, such as a mounted Secret; it overrides the setting `api_keys_file`."""

OPEN_PATHS = frozenset({"/health/live", "/health/ready"})
"""Paths that need no key."""

CHECK_EVERY_S = 1.0

KEY_NAME: ContextVar[str] = ContextVar("key_name", default="")
"""The name of the API key of the current request, for its log lines; empty: none."""

_NAMED = re.compile(rb"(?P<name>[A-Za-z0-9._-]{1,64}):(?P<key>.*)", re.DOTALL)
_BEARER = re.compile(r"^bearer(?:\s+|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Key:
    """A key, and the name under which logs and metrics show it; an empty name: none."""

    value: bytes = field(repr=False)
    name: str = ""

    @classmethod
    def parsed(cls, text: bytes) -> Self:
        """`NAME:KEY` or a bare key. What precedes the colon counts as a name if it is a valid one."""
        match = _NAMED.fullmatch(text)
        return cls(text) if match is None else cls(match["key"].strip(), match["name"].decode())


Keys = Callable[[], Sequence[Key]]
"""The keys that are valid at this moment."""


@dataclass(frozen=True)
class KeySource:
    """Where one kind of keys is configured.

    Attributes:
        kind: what messages call the keys.
        variable: environment variable with keys, separated by commas.
        file_variable: environment variable with the path of a file; it overrides the setting.
    """

    kind: str
    variable: str
    file_variable: str


API_KEYS = KeySource("API keys", KEYS_VARIABLE, FILE_VARIABLE)
OPERATOR_KEYS = KeySource("operator keys", "CAMERA_EDIT_OPERATOR_KEYS", "CAMERA_EDIT_OPERATOR_KEYS_FILE")


class KeyFile:
    """Keys from a file, read again when it has changed. While it is missing, unreadable or empty it has no keys.

    Args:
        path: one key per line. Blank lines, lines that begin with `#` and a byte order mark are ignored.
        clock: seconds; the file is checked for changes at most once in `CHECK_EVERY_S`.
        kind: what messages call the keys.

    Raises:
        ConfigError: the file holds no key now.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic, kind: str = API_KEYS.kind) -> None:
        self._path = path
        self._clock = clock
        self._kind = kind
        self._state = ""
        self._next_check_at = 0.0
        self._keys: tuple[Key, ...] = ()
        self._check()
        if not self._keys:
            raise ConfigError(f"The file of {kind} {path} cannot be read or holds no key; write one key per line.")

    def __call__(self) -> tuple[Key, ...]:
        if self._clock() >= self._next_check_at:
            self._check()
        return self._keys

    def _check(self) -> None:
        self._next_check_at = self._clock() + CHECK_EVERY_S
        try:
            stat = self._path.stat()
            # The time is not enough: Kubernetes updates a mounted Secret by putting another file in its place.
            state = f"{stat.st_mtime_ns} {stat.st_ino} {stat.st_size}"
            if state != self._state:
                self._replace(self._path.read_bytes(), state)
        except OSError as problem:
            self._replace(b"", str(problem))

    def _replace(self, content: bytes, state: str) -> None:
        """A removed key must stop working, so a file without keys rejects every request."""
        lines = content.removeprefix(codecs.BOM_UTF8).splitlines()
        self._keys = _parsed(line for line in lines if not line.lstrip().startswith(b"#"))
        if not self._keys and state != self._state:
            logger.error(
                "the file of %s holds no key, so every request that needs one is rejected: %s (%s)",
                self._kind,
                self._path,
                state,
            )
        self._state = state


def configured_keys(setting: str | None, source: KeySource = API_KEYS) -> Keys | None:
    """The keys of the environment and of the file; None where neither is set.

    Args:
        setting: the path in `api_keys_file` or `operator_keys_file`.

    Raises:
        ConfigError: a file or the variable is set, and it holds no key.
    """
    variable = os.environ.get(source.variable, "")
    given = _parsed(part.encode() for part in variable.split(","))
    if variable.strip(" ,") and not given:
        raise ConfigError(f"{source.variable} is set and holds no key; write KEY,ANOTHER or NAME:KEY.")
    path = os.environ.get(source.file_variable, "").strip() or setting
    if path is None:
        return (lambda: given) if given else None
    file = KeyFile(Path(path).expanduser(), kind=source.kind)
    return lambda: (*given, *file())


def _parsed(texts: Iterable[bytes]) -> tuple[Key, ...]:
    """Blank texts are ignored, and so are names without a key: an empty key would admit requests without one."""
    keys = (Key.parsed(text.strip()) for text in texts)
    return tuple(key for key in keys if key.value)


def require_keys(keys: Keys | None, host: str, allow_anonymous: bool) -> None:
    """Return if the service may listen on `host` with these keys.

    Raises:
        StartupError: there are no keys, other machines can reach `host`, and anonymous use is not allowed.
    """
    if keys is None and not allow_anonymous and not is_loopback(host):
        raise StartupError(
            f"No API keys are set, and http_options.host {host} can be reached from other machines. "
            f"Set {KEYS_VARIABLE}=KEY,ANOTHER or {FILE_VARIABLE}=PATH in the environment of the nodes, "
            "or, to let anybody use the service, allow_anonymous: true among the application's args. "
            "A service for this machine alone needs neither with http_options.host: 127.0.0.1."
        )


def is_loopback(host: str) -> bool:
    """Whether an address, or the name localhost, is this machine's loopback. Other names are not resolved."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    # A socket that listens on :: shows IPv4 peers as ::ffff:a.b.c.d.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def credentials(headers: Headers) -> bytes:
    """The key that a request presents, as `Bearer KEY` or, as RunPod's clients do, bare; empty: none."""
    return _BEARER.sub("", headers.get("authorization", ""), count=1).strip().encode("latin-1")


def matching(keys: Keys | None, given: bytes) -> Key | None:
    """The key that equals `given`. All are compared, each in constant time."""
    found = [key for key in (keys() if keys is not None else ()) if hmac.compare_digest(given, key.value)]
    return found[0] if found else None


class ApiKeys:
    """ASGI middleware: answers 401 to requests without a valid key, except on `OPEN_PATHS` and for requests that the
    operator gate has admitted. The key's name is put into the scope's state as `key_name`.

    Args:
        keys: None: no key is needed. A callable that returns no keys: every request is rejected.
    """

    def __init__(self, app: ASGIApp, keys: Keys | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # There is no WebSocket route, so a scope of another type needs no key.
        if self._keys is None or scope["type"] != "http" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        key = matching(self._keys, credentials(Headers(scope=scope)))
        if key is None:
            problem = Unauthorized("The API key is missing or wrong. Send it as `Authorization: Bearer KEY`.")
            await refusal(scope["path"], problem)(scope, receive, send)
            return
        scope.setdefault("state", {})["key_name"] = key.name
        token = KEY_NAME.set(key.name)
        try:
            await self._app(scope, receive, send)
        finally:
            KEY_NAME.reset(token)


def _is_open(scope: Scope) -> bool:
    return route_path(scope) in OPEN_PATHS or scope.get("state", {}).get("is_operator", False)
