"""API keys and operator keys: where they are read from, and which requests they admit."""

import codecs
import hmac
import ipaddress
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from serve_app.errors import ConfigError, Forbidden, ServiceError, StartupError, Unauthorized

logger = logging.getLogger(__name__)

KEYS_VARIABLE = "CAMERA_EDIT_API_KEYS"
"""Keys, separated by commas."""

FILE_VARIABLE = "CAMERA_EDIT_API_KEYS_FILE"
"""A file with one key per line, such as a mounted Secret; it overrides the setting `api_keys_file`."""

CHECK_EVERY_S = 1.0

KEY_NAME: ContextVar[str] = ContextVar("key_name", default="")
"""The name of the API key of the current request, for its log lines; empty: none."""

CLIENT: ContextVar[str] = ContextVar("client", default="")
"""`Key.client` of the current request's API key, for its edits and jobs; empty: no key is needed."""

_NAMED = re.compile(rb"(?P<name>[A-Za-z0-9._-]{1,64}):(?P<key>.*)", re.DOTALL)
_BEARER = re.compile(r"^bearer(?:[ \t]+|$)", re.IGNORECASE)
_BLANKS = " \t\r\n\f\v"


@dataclass(frozen=True)
class Key:
    """A key, and its name in logs and metrics; empty: it has none.

    Attributes:
        position: where it is configured, as `file#2` for the second key of a file.
    """

    value: bytes = field(repr=False)
    name: str = ""
    position: str = field(default="", repr=False, compare=False)

    @property
    def client(self) -> str:
        """Who shares the queue and the store of jobs. It is stored with jobs, so nothing is derived from the key."""
        return self.name or self.position

    @classmethod
    def parsed(cls, text: bytes) -> Self:
        """`NAME:KEY` or a bare key. Text before the colon that is not a valid name is a part of the key."""
        match = _NAMED.fullmatch(text)
        return cls(text) if match is None else cls(match["key"].strip(), match["name"].decode())


Keys = Callable[[], Sequence[Key]]
"""Returns the keys that are valid now."""


@dataclass(frozen=True)
class KeySource:
    """Where one kind of keys is configured.

    Attributes:
        kind: the keys' name in messages.
        variable: environment variable with keys, separated by commas.
        file_variable: environment variable with the path of a file; it overrides the setting.
    """

    kind: str
    variable: str
    file_variable: str


API_KEYS = KeySource("API keys", KEYS_VARIABLE, FILE_VARIABLE)
OPERATOR_KEYS = KeySource("operator keys", "CAMERA_EDIT_OPERATOR_KEYS", "CAMERA_EDIT_OPERATOR_KEYS_FILE")


_HOST = re.compile(r"(\[(?P<v6>[^\]]*)\]|(?P<name>[^:]*))(:\d*)?")
# Any of these is evidence of a proxy between the client and this machine's loopback; so is HTTP/1.0, nginx' default.
_FORWARDING_HEADERS = ("forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip")
_FORWARDING_PREFIXES = ("x-forwarded-", "x-envoy-")
_LOOPBACK_PEERS = ("127.0.0.1", "::1", "::ffff:127.0.0.1")  # not 127.0.0.6, which is Istio's proxy

_CROSS_SITE = Forbidden("A web page of another site may not call this endpoint.")
_WRONG_KIND = Forbidden("This endpoint needs an operator key, and this is an API key.")
_NOT_LOCAL = Forbidden(
    f"Without operator keys, this endpoint can be called only from the service's own machine. "
    f"Set {OPERATOR_KEYS.variable} or {OPERATOR_KEYS.file_variable} to call it from elsewhere."
)
_WRONG_KEY = Unauthorized(
    "The operator key is missing or wrong. Send it as `Authorization: Bearer KEY`; "
    f"the service reads operator keys from {OPERATOR_KEYS.variable} or {OPERATOR_KEYS.file_variable}."
)
_UNKNOWN_KEY = Unauthorized("The key is wrong. From the service's own machine, send no key.")


class KeyFile:
    """Keys from a file, which is read again when it has changed. While it is missing, unreadable or empty, there are no
    keys.

    Args:
        path: one key per line. Blank lines, lines that begin with `#` and a byte order mark are ignored.
        clock: seconds; the file is checked for changes at most once in `CHECK_EVERY_S`.
        kind: the keys' name in messages.

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
        self._keys = _parsed("file", (line for line in lines if not line.lstrip().startswith(b"#")))
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
    keys = _parsed("env", (os.fsencode(part) for part in variable.split(",")))
    if variable.strip(" ,") and not keys:
        raise ConfigError(f"{source.variable} is set and holds no key; write KEY,ANOTHER or NAME:KEY.")
    path = os.environ.get(source.file_variable, "").strip() or setting
    if path is None:
        return (lambda: keys) if keys else None
    file = KeyFile(Path(path).expanduser(), kind=source.kind)
    return lambda: (*keys, *file())


def _parsed(source: str, texts: Iterable[bytes]) -> tuple[Key, ...]:
    """Blank texts are ignored, and so are names without a key: an empty key would admit requests without one."""
    keys = (key for text in texts if (key := Key.parsed(text.strip())).value)
    return tuple(replace(key, position=f"{source}#{number}") for number, key in enumerate(keys, 1))


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
    # Only ASCII's white space: in latin-1, the last bytes of a key in UTF-8 may look like other white space.
    return _BEARER.sub("", headers.get("authorization", ""), count=1).strip(_BLANKS).encode("latin-1")


def matching(keys: Keys | None, credential: bytes) -> Key | None:
    """The key that equals `credential`. All keys are compared, each in constant time."""
    found = [key for key in (keys() if keys is not None else ()) if hmac.compare_digest(credential, key.value)]
    return found[0] if found else None


def operator_error(
    scope: Scope, operator_keys: Keys | None, api_keys: Keys | None, behind_haproxy: bool
) -> ServiceError | None:
    """Why a request may not reach an operator endpoint, or None.

    Cross-site browser requests and API keys are always rejected. With operator keys, a request needs one of them;
    without, it must come from this machine directly.

    Args:
        behind_haproxy: the peer is HAProxy, so its address says nothing about the client.
    """
    headers = Headers(scope=scope)
    credential = credentials(headers)
    if _is_cross_site(headers):
        return _CROSS_SITE
    # First, since a key may have been configured as both.
    if matching(api_keys, credential) is not None:
        return _WRONG_KIND
    if operator_keys is not None:
        return None if matching(operator_keys, credential) is not None else _WRONG_KEY
    if behind_haproxy or not is_local(scope):
        return _NOT_LOCAL
    return _UNKNOWN_KEY if credential and api_keys is not None else None


def _is_cross_site(headers: Headers) -> bool:
    """Whether a browser sent this for a page of another origin."""
    sites = {site.strip().lower() for site in headers.getlist("sec-fetch-site")}
    host = headers.get("host", "").lower()
    return not sites <= {"same-origin", "none"} or any(_authority(each) != host for each in headers.getlist("origin"))


def _authority(origin: str) -> str | None:
    """`host[:port]` of an origin; None: it has none, as the origin `null`."""
    try:
        return urlsplit(origin.strip().lower()).netloc or None
    except ValueError:
        return None


def is_local(scope: Scope) -> bool:
    """Whether the request shows no sign that its client runs on another machine. The Host header excludes pages whose
    name resolves to this machine, and a forwarding header excludes clients of a reverse proxy here. Serve's proxy puts
    the peer's address into `client`; uvicorn replaces it by `x-forwarded-for` if the peer is loopback."""
    headers, peer = Headers(scope=scope), scope.get("client")
    hosts = headers.getlist("host")
    is_forwarded = scope.get("http_version") == "1.0" or any(
        name in _FORWARDING_HEADERS or name.startswith(_FORWARDING_PREFIXES) for name in headers
    )
    is_peer_local = peer is not None and peer[0] in _LOOPBACK_PEERS
    return is_peer_local and not is_forwarded and len(hosts) == 1 and _names_loopback(hosts[0])


def _names_loopback(host: str) -> bool:
    match = _HOST.fullmatch(host.strip().lower())
    return match is not None and is_loopback(match["v6"] or match["name"] or "")
