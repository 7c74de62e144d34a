"""What the routes need from outside the ingress, and whether the service drains."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property

from serve_app.config import AppSettings, LoraSettings
from serve_app.edits.job import JobsPort
from serve_app.edits.request import Pictures, SharedPictures
from serve_app.edits.service import EditService
from serve_app.ingress.auth import Keys
from serve_app.ingress.limits.budget import OutgoingBytes
from serve_app.ingress.limits.edit_places import EditPlaces
from serve_app.ingress.limits.job_bodies import JobBodies
from serve_app.ingress.mcp.calls import CancelElsewhere, OpenCalls
from serve_app.ingress.parsing.bodies import BodyReader
from serve_app.ingress.pictures.prepare import Preparer

RETRY_AFTER_S = 5
"""The Retry-After of 503, and of 429 until throughput has been measured."""


DRAINS = "The service is shutting down and takes no new work; try again later."


@dataclass
class Draining:
    """The drain state of one ingress replica.

    Attributes:
        begun: new work is rejected.
        num_requests: requests in flight, except those for health and the drain.
    """

    begun: bool = False
    num_requests: int = 0

    def begin(self) -> int:
        """Reject new work from now on; returns the number of requests in flight."""
        self.begun = True
        return self.num_requests

    def end(self) -> int:
        """Accept new work again; returns the number of requests in flight."""
        self.begun = False
        return self.num_requests


@dataclass
class Reconfigured:
    """What has changed since the start.

    Attributes:
        loras: the adapters that are not fused; None: those of the settings.
    """

    loras: tuple[LoraSettings, ...] | None = None


async def _no_fault() -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """Ports and settings.

    Attributes:
        jobs: runs edits that outlive their connection.
        service: runs edits that end with their connection.
        share: puts prepared pictures where they can be passed by reference; called once for each set.
        workers: RunPod's worker counts by state, from the number of busy ones.
        api_keys: the customers' keys; None: no key is needed.
        operator_keys: the keys of the operator endpoints; None: none are configured.
        behind_serve: Serve's proxy is in front, which adds `x-request-id` to responses.
        behind_haproxy: Serve runs behind HAProxy, which is the peer of every request.
        has_playground: the web page is served at /, without a key.
        draining: the state of this replica.
        drain: begins the drain in all replicas and returns the number of requests in flight; None: in this one only.
        undrain: ends it, likewise.
        editor_fault: why no editor would accept work, or None.
        retry_after_s: the Retry-After of 429.
        bodies: reads the bodies of all requests.
        outgoing: the budget of responses that clients have not taken yet.
        calls: the tool calls that this replica runs.
        cancel_elsewhere: cancels a tool call in any replica; None: there is only this one.
        reconfigured: what has changed since the start.
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
    has_playground: bool = False
    draining: Draining = field(default_factory=Draining)
    drain: Callable[[], Awaitable[int]] | None = None
    undrain: Callable[[], Awaitable[int]] | None = None
    editor_fault: Callable[[], Awaitable[str | None]] = _no_fault
    retry_after_s: Callable[[], int] = lambda: RETRY_AFTER_S
    bodies: BodyReader = field(default_factory=BodyReader)
    outgoing: OutgoingBytes = field(default_factory=OutgoingBytes)
    calls: OpenCalls = field(default_factory=OpenCalls)
    cancel_elsewhere: CancelElsewhere | None = None
    reconfigured: Reconfigured = field(default_factory=Reconfigured)

    @property
    def loras(self) -> tuple[LoraSettings, ...]:
        """All adapters of now, the fused ones first."""
        editor, changed = self.settings.editor, self.reconfigured.loras
        return editor.fused_loras + (editor.unfused_loras if changed is None else changed)

    @cached_property
    def job_bodies(self) -> JobBodies:
        """One for all dialects, since it bounds what is rendered at once."""
        return JobBodies(self.jobs)

    @cached_property
    def edit_places(self) -> EditPlaces:
        """One for all dialects, since they share the engine's queue."""
        return EditPlaces(self.settings.editor.max_waiting_edits)
