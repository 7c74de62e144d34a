"""The ingress as a Serve deployment."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from serve_app.config import AdapterSettings, AppSettings
from serve_app.edits.fair_editor import FairEditor
from serve_app.edits.service import EditService
from serve_app.errors import StartupError
from serve_app.ingress.app import build_app
from serve_app.ingress.auth import OPERATOR_KEYS, Keys, configured_keys, is_loopback, require_keys
from serve_app.ingress.backend import Backend, Draining
from serve_app.ingress.mcp.calls import CallId, OpenCalls
from serve_app.ingress.metrics import MetricsMiddleware, RequestMetrics
from serve_app.ingress.pictures.decoders import DecoderPool
from serve_app.ingress.pictures.prepare import Preparer
from serve_app.ingress.throughput import MeteredEditor, ThroughputMeter
from serve_app.serving.handles import EditorHandle, OpenRewriter, call_all, fault, jobs_port, worker_counts
from serve_app.serving.http_server import configure_http_servers, is_behind_haproxy
from serve_app.serving.memory import return_freed_memory
from serve_app.serving.replica import join_serve_logs
from serve_app.serving.shared import share

logger = logging.getLogger(__name__)


@serve.ingress()
class Ingress:
    """Answers HTTP by calling deployment handles. The ASGI app is built in the replica, so it is never pickled."""

    def __init__(
        self,
        settings: AppSettings,
        editor: "DeploymentHandle[Any]",
        rewriter: "DeploymentHandle[Any] | None",
        jobs: "DeploymentHandle[Any]",
        open_rewriter: OpenRewriter,
        give_up: Callable[[], None],
    ) -> None:
        join_serve_logs()
        return_freed_memory()
        configure_http_servers()
        api_keys, operator_keys = _checked_keys(settings, give_up)
        me = serve.get_replica_context()
        port = jobs_port(jobs)
        meter = ThroughputMeter(port)
        metered = MeteredEditor(FairEditor(EditorHandle(editor)), meter)
        self._draining = Draining()
        self._calls = OpenCalls()
        self._decoders = DecoderPool(settings.limits.num_decode_threads)
        self._backend = Backend(
            settings=settings,
            jobs=port,
            service=EditService(metered, open_rewriter(rewriter)),
            share=share,
            workers=partial(worker_counts, me.app_name, "Editor"),
            prepare=Preparer(settings, self._decoders),
            api_keys=api_keys,
            operator_keys=operator_keys,
            behind_serve=True,
            behind_haproxy=is_behind_haproxy(),
            has_playground=is_loopback(_bound_host()) if settings.playground is None else settings.playground,
            draining=self._draining,
            drain=partial(_sum_of_all, me.app_name, me.deployment, "begin_drain"),
            undrain=partial(_sum_of_all, me.app_name, me.deployment, "end_drain"),
            editor_fault=partial(fault, me.app_name, "Editor", editor),
            retry_after_s=meter.retry_after_s,
            calls=self._calls,
            cancel_elsewhere=partial(call_all, me.app_name, me.deployment, "cancel_call"),
        )

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Let requests name the adapters of a new user_config; a wrong one changes nothing."""
        try:
            loras = AdapterSettings.model_validate(user_config).loras
            self._backend.reconfigured.loras = self._backend.settings.editor.with_adapters(loras).unfused_loras
        except ValueError as problem:
            logger.error("user_config was not applied, the adapters stay as they were: %s", problem)

    async def begin_drain(self) -> int:
        """Reject new work; returns this replica's number of requests in flight."""
        return self._draining.begin()

    async def end_drain(self) -> int:
        """Accept new work again; returns this replica's number of requests in flight."""
        return self._draining.end()

    async def cancel_call(self, call: CallId) -> bool:
        """Cancel a tool call; returns whether it ran in this replica."""
        return self._calls.cancel(call)

    def __del__(self) -> None:
        # Serve calls this at shutdown, also if the constructor raised an error.
        if hasattr(self, "_decoders"):
            self._decoders.close()

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = build_app(self._backend)
        app.add_middleware(MetricsMiddleware, metrics=RequestMetrics())
        return app


async def _sum_of_all(application: str, deployment: str, method: str) -> int:
    return sum(await call_all(application, deployment, method))


def _checked_keys(settings: AppSettings, give_up: Callable[[], None]) -> tuple[Keys | None, Keys | None]:
    """This node's API keys and operator keys.

    Args:
        give_up: called before an error, since Serve would restart the replica again and again.

    Raises:
        StartupError: the proxies may not listen at their address with these API keys, or a file of keys holds none.
    """
    try:
        keys = configured_keys(settings.api_keys_file)
        require_keys(keys, _bound_host(), settings.allow_anonymous)
        operator_keys = configured_keys(settings.operator_keys_file, OPERATOR_KEYS)
        if keys is not None and operator_keys is None:
            logger.warning(
                "no operator keys are set: any client on this machine may drain the service and purge its queue, "
                "and so may clients of a reverse proxy here that sends no forwarding header"
            )
        return keys, operator_keys
    except StartupError as problem:
        logger.error(problem)
        give_up()
        raise


def _bound_host() -> str:
    """The address at which Serve's proxies listen. Ray has no public call for it."""
    client = _get_global_client()
    # HAProxy listens on all interfaces, whatever http_options says.
    return "0.0.0.0" if client is None or is_behind_haproxy() else client.http_config.host
