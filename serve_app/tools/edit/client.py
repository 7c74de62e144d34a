"""Sends edits as jobs, each with an Idempotency-Key, and waits for them through lost connections and full queues."""

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from serve_app.errors import EditFailed, Forbidden, InvalidInput, ServiceError, ServiceUnavailable, Unauthorized
from serve_app.ingress.runpod.answers import RunPodAccepted, RunPodEnvelope
from serve_app.tools.connection import CONNECT_S, KEY_VARIABLE, Connection

WAIT_S = 20.0
"""Of one long poll: shorter than the time after which proxies close a silent connection."""
READ_S = WAIT_S + 40
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 15.0
"""Pauses between attempts, where no Retry-After says more."""
GONE_S = 300.0
"""After so many seconds without any answer but 502, 503 and 504, the service counts as gone. A restart takes less."""
MAX_SUBMISSIONS = 3
"""Of a job that the service forgets."""

FATAL = (Unauthorized, Forbidden, ServiceUnavailable)
"""Errors that all other requests would meet, too."""

Model = TypeVar("Model", bound=BaseModel)

_UNAVAILABLE = {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
_REPEATED = _UNAVAILABLE | {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}


@dataclass(frozen=True)
class Answer:
    """A finished picture. `rewrite`: the entry of the output's `rewritten_log`, if rewriting was requested."""

    job_id: str
    data: bytes
    seed: int
    final_prompt: str
    rewrite: Mapping[str, str | None] | None


class EditClient:
    """One picture per call of `edit`; any number of calls at once."""

    def __init__(
        self,
        connection: Connection,
        transport: httpx2.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        options: dict[str, Any] = connection.client_options
        timeout = httpx2.Timeout(READ_S, connect=CONNECT_S)
        self._http = httpx2.AsyncClient(base_url=connection.url, transport=transport, timeout=timeout, **options)
        self._url, self._clock, self._sleep = connection.url, clock, sleep
        self._answered_at = clock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, where: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def edit(self, body: Mapping[str, object], key: str) -> Answer:
        """Submit the job of this key, or find it, and wait for its picture. The caller limits the time.

        Raises:
            EditFailed: the job ended without a picture; its key is used up.
            InvalidInput, ServiceError: the service rejects the request.
            Unauthorized, Forbidden, ServiceUnavailable: it would reject any other, or is gone.
        """
        for _ in range(MAX_SUBMISSIONS):
            job_id = await self._submit(body, key)
            envelope = await self._end_of(job_id)
            if envelope is not None:
                return _answer(envelope)
        raise EditFailed("The service forgets the job. Its store may not be durable, or shared by its replicas.")

    async def _submit(self, body: Mapping[str, object], key: str) -> str:
        response = await self._send("POST", "/run", json=body, headers={"idempotency-key": key})
        if response.status_code != HTTPStatus.OK:
            raise self._refusal(response)
        return self._read(RunPodAccepted, response).id

    async def _end_of(self, job_id: str) -> RunPodEnvelope | None:
        """The job's envelope at its end; None if the service does not know it."""
        while True:
            response = await self._send("GET", f"/status-sync/{job_id}", params={"wait": round(1000 * WAIT_S)})
            if response.status_code == HTTPStatus.NOT_FOUND:
                return None
            if response.status_code != HTTPStatus.OK:
                raise self._refusal(response)
            envelope = self._read(RunPodEnvelope, response)
            if envelope.status.final:
                return envelope

    async def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Repeat a request until its response is not about the connection or the load."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                response = await self._http.request(method, path, **options)
            except httpx2.TransportError as problem:
                self._check_gone(repr(problem))
                await self._sleep(pause_s)
            else:
                if response.status_code in _UNAVAILABLE:
                    self._check_gone(_message(response))
                else:
                    self._answered_at = self._clock()
                if response.status_code not in _REPEATED:
                    return response
                await self._sleep(_retry_after_s(response) or pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _check_gone(self, reason: str) -> None:
        if self._clock() - self._answered_at > GONE_S:
            raise ServiceUnavailable(
                f"{self._url} has not been available for {GONE_S:g} s: {reason}. The same command continues later."
            )

    def _refusal(self, response: httpx2.Response) -> ServiceError:
        status, message = response.status_code, _message(response)
        if status == HTTPStatus.UNAUTHORIZED:
            return Unauthorized(
                f"The service needs an API key, and none or a wrong one was sent: set {KEY_VARIABLE}, or key in the "
                "configuration file."
            )
        if status == HTTPStatus.FORBIDDEN:
            return Forbidden(message)
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            return ServiceUnavailable(f"{self._url} is not a camera-edit service: /run answers {status}: {message}")
        if status == HTTPStatus.UNPROCESSABLE_ENTITY:  # another version of the service read the same body differently
            return EditFailed(message)
        return InvalidInput(message) if response.is_client_error else ServiceError(f"{status}: {message}")

    def _read(self, model: type[Model], response: httpx2.Response) -> Model:
        try:
            return model.model_validate_json(response.content)
        except ValidationError as problem:
            raise ServiceUnavailable(f"{self._url} is not a camera-edit service: {response.text[:100]!r}") from problem


def _answer(envelope: RunPodEnvelope) -> Answer:
    output = envelope.output
    if output is None:
        raise EditFailed(f"The job ended as {envelope.status}: {envelope.error or 'no reason was given'}")
    rewrite = output.rewritten_log[0] if output.rewritten_log else None
    return Answer(envelope.id, base64.b64decode(output.images[0]), output.seed, output.final_prompts[0], rewrite)


def _message(response: httpx2.Response) -> str:
    """The message of an error response in RunPod's dialect, or the start of any other text."""
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200] or response.reason_phrase


def _retry_after_s(response: httpx2.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None
