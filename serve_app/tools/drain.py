"""`camera-edit drain`: lets a running service finish its accepted work, so that it can be stopped."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus

import httpx2

from serve_app.errors import DeadlineExceeded, Forbidden, ServiceError, ServiceUnavailable, Unauthorized
from serve_app.ingress.auth import OPERATOR_KEYS, configured_keys
from serve_app.ingress.health import DRAIN_PATH, UNDRAIN_PATH
from serve_app.tools.connection import checked_url

POLL_S = 0.5
SETTLE_S = 1.0
"""After the drain: responses of the replicas may still be passing through the proxies."""
ANSWER_S = 15.0
"""Timeout of one request. An Ingress replica waits up to ten seconds for the others."""
FIRST_ANSWER_S = 10.0
"""After so many seconds of failures before the first answer, the service counts as unreachable."""
GONE_S = 60.0
"""After so many seconds of refused connections without a break, the service counts as stopped."""

Print = Callable[[str], None]
Clock = Callable[[], float]


def drain(
    url: str,
    timeout_s: float,
    print_line: Print,
    transport: httpx2.BaseTransport | None = None,
    keys_file: str | None = None,
    clock: Clock = time.monotonic,
) -> None:
    """Make the service reject new work, and return when nothing is in flight. A request that fails is repeated.

    Args:
        url: of the service, such as http://127.0.0.1:8000.
        print_line: called with each change of the number of requests and jobs in flight.
        transport: replaces the network in tests.
        keys_file: the setting `operator_keys_file`. The first operator key of the environment or of this file is sent.
        clock: returns seconds.

    Raises:
        UsageError: `url` is none.
        DeadlineExceeded: work is still in flight after `timeout_s`.
        ServiceUnavailable: the service never answered, or has stopped.
        ServiceError: it rejects this request or has no such route.
    """
    deadline, reported, has_answered = clock() + timeout_s, "", False
    with _client(url, transport, keys_file) as client:
        for answer in _answers(client, DRAIN_PATH, clock):
            if answer.in_flight == "":
                break
            if answer.report != reported:
                print_line(answer.report)
                reported = answer.report
            has_answered = has_answered or answer.in_flight is not None
            if clock() > deadline:
                raise _too_late(url, timeout_s, answer, has_answered)
    time.sleep(SETTLE_S)


def undrain(url: str, transport: httpx2.BaseTransport | None = None, clock: Clock = time.monotonic) -> None:
    """Make a draining service accept new work again.

    Raises:
        ServiceError: as `drain`.
    """
    with _client(url, transport, None) as client:
        next(answer for answer in _answers(client, UNDRAIN_PATH, clock) if answer.in_flight is not None)


def _client(url: str, transport: httpx2.BaseTransport | None, keys_file: str | None) -> httpx2.Client:
    keys = configured_keys(keys_file, OPERATOR_KEYS)
    headers = {} if keys is None else {"authorization": f"Bearer {keys()[0].value.decode('latin-1')}"}
    return httpx2.Client(
        base_url=checked_url(url), headers=headers, timeout=ANSWER_S, trust_env=False, transport=transport
    )


@dataclass(frozen=True)
class _Answer:
    """The result of one poll.

    Attributes:
        in_flight: such as "2 requests and 1 jobs"; empty if nothing is in flight, None if the request failed.
        report: a line to print.
    """

    in_flight: str | None
    report: str


def _too_late(url: str, timeout_s: float, answer: _Answer, has_answered: bool) -> ServiceError:
    if not has_answered:
        return ServiceUnavailable(f"{url} did not answer within {timeout_s:g} s: {answer.report}")
    left = "unknown work" if answer.in_flight is None else answer.in_flight
    return DeadlineExceeded(f"{left} still in flight after {timeout_s:g} s; no new work is taken.")


def _answers(client: httpx2.Client, path: str, clock: Clock) -> Iterator[_Answer]:
    """Poll until the caller stops; a failed request that may succeed later yields an answer, too.

    Raises:
        ServiceError: another poll would fail as well.
    """
    failures = _FailureTimer(clock)
    while True:
        try:
            in_flight = _post(client, path)
        except (httpx2.HTTPError, ServiceUnavailable) as problem:
            failures.check(client, problem)
            yield _Answer(None, f"no answer, trying again: {problem}")
        else:
            failures.reset()
            yield _Answer(in_flight, f"waiting for {in_flight}")
        time.sleep(POLL_S)


class _FailureTimer:
    """Decides when failed requests mean that the service is unreachable or has stopped."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_at = clock()
        self._has_answered = False
        self._refused_since: float | None = None

    def reset(self) -> None:
        self._has_answered, self._refused_since = True, None

    def check(self, client: httpx2.Client, problem: Exception) -> None:
        """Return if another request may succeed.

        Raises:
            ServiceUnavailable: the service never answered, or has stopped.
        """
        now = self._clock()
        if not isinstance(problem, httpx2.ConnectError):
            self._refused_since = None
        elif self._refused_since is None:
            self._refused_since = now
        is_gone = self._refused_since is not None and now - self._refused_since >= GONE_S
        is_absent = not self._has_answered and now - self._began_at >= FIRST_ANSWER_S
        if is_absent or (self._has_answered and is_gone):
            raise ServiceUnavailable(f"{client.base_url} does not answer: {problem}") from problem


def _post(client: httpx2.Client, path: str) -> str:
    """What is in flight, such as "2 requests and 1 jobs"; empty if nothing is.

    Raises:
        httpx2.HTTPError: there was no response.
        ServiceUnavailable: another request may succeed.
        ServiceError: another request would fail as well.
    """
    answer = client.post(path)
    if answer.status_code == HTTPStatus.UNAUTHORIZED:
        raise Unauthorized(
            "The service needs an operator key, and none or a wrong one was sent: set "
            f"{OPERATOR_KEYS.variable} or {OPERATOR_KEYS.file_variable}."
        )
    failure = f"{answer.url} answers {answer.status_code}: {answer.text}"
    if answer.status_code == HTTPStatus.FORBIDDEN:
        raise Forbidden(failure)
    if answer.status_code == HTTPStatus.TOO_MANY_REQUESTS or answer.is_server_error:
        raise ServiceUnavailable(failure)
    if answer.status_code != HTTPStatus.OK:
        raise ServiceError(failure)
    try:
        counts = {name: number for name, number in answer.json().items() if number > 0}
    except (ValueError, AttributeError, TypeError) as problem:
        raise ServiceError(f"{answer.url} is not a camera-edit service: {answer.text[:100]}") from problem
    return " and ".join(f"{number} {name}" for name, number in counts.items())
