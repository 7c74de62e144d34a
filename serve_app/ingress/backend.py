"""What the routes need from outside the ingress."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from serve_app.config import AppSettings
from serve_app.edits.job import JobsPort
from serve_app.edits.request import Pictures, SharedPictures
from serve_app.edits.service import EditService
from serve_app.ingress.auth import Keys
from serve_app.ingress.drain import Draining
from serve_app.ingress.load import UNKNOWN_S
from serve_app.ingress.prepare import Preparer


async def _no_fault() -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """Ports and settings.

    Attributes:
        jobs: runs what outlives its connection.
        service: runs what ends with its connection.
        share: makes prepared pictures travel by reference; called once for each set.
        workers: RunPod's worker counts by state, given how many of them are busy.
        api_keys: the customers' keys; None: none is needed.
        operator_keys: the keys of the operator endpoints; None: none are configured.
        behind_serve: Serve's proxy is in front, which puts `x-request-id` on answers.
        behind_haproxy: Serve runs behind HAProxy, which is the peer of every request.
        draining: the state of this replica.
        drain: begins the drain in all replicas and returns how many requests they are answering; None: this one only.
        undrain: ends it, likewise.
        editor_fault: why no editor would take work, or None.
        retry_after_s: what a client is told to wait when there is no room.
    """

    settings: AppSettings
    jobs: JobsPort
    service: EditService
    share: Callable[[Pictures], SharedPictures]
    workers: Callable[[int], Awaitable[dict[str, int]]]
    prepare: Preparer
    api_keys: Keys | None = None
    operator_keys: Keys | None = None
    behind_serve: bool = False
    behind_haproxy: bool = False
    draining: Draining = field(default_factory=Draining)
    drain: Callable[[], Awaitable[int]] | None = None
    undrain: Callable[[], Awaitable[int]] | None = None
    editor_fault: Callable[[], Awaitable[str | None]] = _no_fault
    retry_after_s: Callable[[], int] = lambda: UNKNOWN_S
