"""`camera-edit drain`: let a running service finish what it has taken, so that it can be stopped."""

import time
from collections.abc import Callable

import httpx2

from serve_app.errors import DeadlineExceeded, ServiceError, ServiceUnavailable, Unauthorized
from serve_app.ingress.drain import DRAIN_PATH
from serve_app.ingress.keys import configured_keys

POLL_S = 0.5
SETTLE_S = 1.0
"""What the replicas have answered may still be on its way through the proxies."""

Say = Callable[[str], None]


def drain(
    url: str,
    timeout_s: float,
    say: Say,
    transport: httpx2.BaseTransport | None = None,
    keys_file: str | None = None,
) -> None:
    """Tell the service to take no new work, and return when nothing is in flight. It goes with the first key that this
    process's environment, or else `keys_file`, names for the service itself.

    Args:
        url: where the service listens, such as http://127.0.0.1:8000.
        transport: in place of the network.

    Raises:
        ServiceError: something is in flight still after `timeout_s`, or the service does not answer.
    """
    deadline, told = time.monotonic() + timeout_s, ""
    headers = _headers(keys_file)
    with httpx2.Client(base_url=url, headers=headers, timeout=30, trust_env=False, transport=transport) as client:
        while left := _ask(client):
            if left != told:
                say(f"waiting for {left}")
                told = left
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"{left} still in flight after {timeout_s:g} s; no new work is taken.")
            time.sleep(POLL_S)
    time.sleep(SETTLE_S)


def _headers(keys_file: str | None) -> dict[str, str]:
    keys = configured_keys(keys_file)
    return {} if keys is None else {"authorization": f"Bearer {keys()[0].decode('latin-1')}"}


def _ask(client: httpx2.Client) -> str:
    """What is in flight, in words; nothing: an empty text."""
    try:
        answer = client.post(DRAIN_PATH)
    except httpx2.HTTPError as problem:
        raise ServiceUnavailable(f"{client.base_url} does not answer: {problem}") from problem
    if answer.status_code == httpx2.codes.UNAUTHORIZED:
        raise Unauthorized("The service wants a key: set CAMERA_EDIT_API_KEYS or CAMERA_EDIT_API_KEYS_FILE.")
    if answer.status_code != httpx2.codes.OK:
        raise ServiceError(f"{client.base_url}{DRAIN_PATH} answers {answer.status_code}: {answer.text}")
    counts = {name: number for name, number in answer.json().items() if number > 0}
    return " and ".join(f"{number} {name}" for name, number in counts.items())
