"""Which service `camera-edit edit`, `mcp` and `bench serve` call, and with which API key."""

import os
import ssl
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import httpx2

from serve_app.errors import ServiceUnavailable, UsageError
from serve_app.ingress.auth import is_loopback

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE, KEY_VARIABLE = "CAMERA_EDIT_URL", "CAMERA_EDIT_API_KEY"
CONNECT_S = 10.0


@dataclass(frozen=True)
class Connection:
    """Where the service is and what opens it. `is_default`: nobody has named a service."""

    url: str
    key: str | None = field(default=None, repr=False)
    is_default: bool = False

    @property
    def client_options(self) -> dict[str, object]:
        """Options of an httpx2 client, or of a single request but for the base URL."""
        headers = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        # A proxy configured for the internet cannot reach this machine.
        trust_env = not is_loopback(httpx2.URL(self.url).host)
        return {"headers": headers, "trust_env": trust_env, "verify": _tls(trust_env)}

    def check(self) -> None:
        """Check that something answers, whatever the status: the server may be another one, without this path.

        Raises:
            ServiceUnavailable: nothing does; the message says how to start a service.
        """
        try:
            httpx2.get(f"{self.url}/health/live", timeout=CONNECT_S, **self.client_options)  # type: ignore[arg-type]
        except httpx2.TransportError as problem:
            advice = (
                "Start one: `camera-edit run configs/gpu-1x80gb.yaml`; or without a GPU, with weights that know only a "
                "toy world, `camera-edit demo --keep --port 8000`. Or name one with --url."
                if self.is_default
                else "Check the URL, and that the service runs."
            )
            raise ServiceUnavailable(f"No service answers at {self.url} ({problem!r}). {advice}") from problem


@cache
def _tls(trust_env: bool) -> ssl.SSLContext:
    """Read once for all clients: the certificates of all authorities take longer than most requests."""
    return httpx2.create_ssl_context(trust_env=trust_env)


def find_connection(url: str | None, key: str | None, environment: Mapping[str, str] = os.environ) -> Connection:
    """The options come before the environment, and this before the configuration file.

    A key of the file is sent to the file's own URL only, or to the default one if the file has none.

    Raises:
        UsageError: the URL or the key cannot be used; the message does not hold the key.
    """
    settings = _read_file(config_file(environment))
    named = url or environment.get(URL_VARIABLE) or None
    in_file = settings.get("url", DEFAULT_URL)
    chosen = checked_url(named or in_file)
    key = key or environment.get(KEY_VARIABLE) or None
    if key is None and chosen == checked_url(in_file):
        key = settings.get("key")
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise UsageError("The API key holds spaces or characters that no HTTP header can carry.")
    return Connection(chosen, key, named is None and "url" not in settings)


def config_file(environment: Mapping[str, str]) -> Path:
    """`camera-edit/config.toml` in the user's folder of configurations."""
    folder = environment.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / "camera-edit" / "config.toml"


def _read_file(file: Path) -> dict[str, str]:
    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as problem:
        raise UsageError(f"{file}: cannot be read: {problem.strerror}") from problem
    except ValueError as problem:
        raise UsageError(f"{file}: not a TOML file.") from problem
    for name, value in settings.items():
        if name not in ("url", "key"):
            raise UsageError(f"{file}: unknown setting {name!r}. It may hold url and key.")
        if not isinstance(value, str):
            raise UsageError(f"{file}: {name} must be a text in quotation marks.")
    return settings


def checked_url(text: str) -> str:
    """The URL of a service without a slash at its end.

    Raises:
        UsageError: it is none.
    """
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as problem:
        raise UsageError(f"The URL of the service cannot be used: {problem}.") from problem
    if url.userinfo:
        raise UsageError("The URL of the service must not hold a user or a password. Send an API key instead.")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise UsageError(f"{text!r} is not the URL of a service, such as {DEFAULT_URL}.")
    return str(url).rstrip("/")
