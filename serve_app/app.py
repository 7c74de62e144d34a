"""The Serve application: the default options of all deployments and every `.bind()`."""

from functools import partial
from typing import Any

from ray import serve
from ray.serve import Application, Deployment

from serve_app.config import AppSettings, EditorSettings
from serve_app.editor.deployment import Editor
from serve_app.ingress.deployment import Ingress
from serve_app.ingress.runpod.answers import webhook_body
from serve_app.jobs.deployment import Jobs
from serve_app.rewriter.deployment import Rewriter, open_rewriter
from serve_app.serving.gpus import end_serve_run, require_gpus
from serve_app.serving.picture_router import PICTURE_ROUTER

# Defaults; the shipped Serve files set their own under `deployments:`. An edit may take minutes, so replicas get that
# long to finish before they are killed. Requests that wait for the engine count as ongoing.
_OPTIONS: dict[str, dict[str, Any]] = {
    "Ingress": {"max_ongoing_requests": 512},
    "Jobs": {"max_ongoing_requests": 1024, "graceful_shutdown_timeout_s": 30},
    "Rewriter": {"max_ongoing_requests": 16, "graceful_shutdown_timeout_s": 60},
    "Editor": {"max_ongoing_requests": 288, "graceful_shutdown_timeout_s": 300},
}


def build(args: AppSettings) -> Application:
    """Compose the deployments. Named in a Serve file as `import_path: serve_app.app:build`.

    Raises:
        NoGpuError: the settings need a GPU that the cluster lacks and cannot get.
    """
    require_gpus(args)
    editor = _editor(args.editor).bind(args.editor)
    rewriter = _deployment(Rewriter).bind(args.rewriter) if args.rewriter_device is not None else None
    to_rewriter = partial(open_rewriter, args.rewriter)
    jobs = _deployment(Jobs).bind(args.jobs, editor, rewriter, webhook_body, to_rewriter)
    return _deployment(Ingress).bind(args, editor, rewriter, jobs, to_rewriter, end_serve_run)


def _editor(settings: EditorSettings) -> Deployment:
    deployment = _deployment(Editor)
    if settings.routing == "balanced":
        return deployment
    return deployment.options(request_router_config={"request_router_class": PICTURE_ROUTER})


def _deployment(cls: type) -> Deployment:
    deployment: Deployment = serve.deployment(**_OPTIONS[cls.__name__])(cls)
    return deployment
