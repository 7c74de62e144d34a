"""Checks a Serve config file strictly, before anything starts.

Serve ignores unknown keys: a file with a misspelt `autoscaling_config` silently runs one replica. This check looks up
each key in Serve's own pydantic models, then runs Serve's validators, then checks the application's settings and the
rules between both. It reports all problems at once, one per line, as `path.to.key: what is wrong`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ray.serve.config import AutoscalingConfig, ProxyLocation
from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema

from serve_app.config import AppSettings, SqliteStoreSettings
from serve_app.ingress.auth import FILE_VARIABLE, KEYS_VARIABLE, is_loopback
from serve_app.tools.check.manifests import check_manifests
from serve_app.tools.check.plan import GpuPlan
from serve_app.tools.check.plans import make_plans
from serve_app.tools.check.reading import find_serve_config, read_documents
from serve_app.tools.check.rules import (
    ADAPTED,
    actor_options,
    check_application,
    emptied,
    most_replicas,
    user_config_of,
)
from serve_app.tools.check.schema import Problems, RawMapping, entries, find_unknown_keys, join, validate

MAX_PORT = 65_535
SQLITE_WARNING = (
    "warning: args.jobs.store is a file on the node that runs Jobs: on several nodes, use Redis, as in configs/vm/"
    "serve.yaml"
)

MIDDLEWARE_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
MIDDLEWARE = "serve_app.ingress.proxy:middlewares"
MIDDLEWARE_WARNING = (
    f"warning: controller_options.runtime_env.env_vars does not set {MIDDLEWARE_VARIABLE} to {MIDDLEWARE}: unless the "
    "nodes' environment does, Serve's HTTP proxy (behind HAProxy: the server of each Ingress replica) runs without the "
    "service's middleware. Then it answers /-/routes to everyone, takes bodies of any size and obeys clients' control "
    "headers. Copy the block from serve_config.yaml"
)


@dataclass(frozen=True)
class ServeFile:
    """A Serve config file that passed every check.

    Attributes:
        settings: one entry per application, in the file's order.
        plans: one entry per application, with a memory plan for each of its deployments on a GPU.
    """

    serve: ServeDeploySchema
    settings: tuple[AppSettings, ...]
    plans: tuple[tuple[GpuPlan, ...], ...]


def check_file(path: Path) -> ServeFile:
    """Read and check a Serve config file, or Kubernetes manifests: the Serve config in their RayService, and its pods.

    Args:
        path: of the file; `-` is standard input.

    Raises:
        ConfigError: lists all problems, one per line.
    """
    problems = Problems(path)
    documents = read_documents(path)
    prefix, raw = find_serve_config(documents, path)
    find_unknown_keys(raw, ServeDeploySchema, prefix, problems)
    # Bottom up, so that one broken deployment does not hide the problems of the others.
    apps = list(entries(raw.get("applications"), join(prefix, "applications")))
    settings = [check_application(app, at, problems) for at, app in apps]
    if not apps:
        problems.add(join(prefix, "applications"), "must list an application")
    validate(ServeDeploySchema, emptied(raw, "applications"), prefix, problems)
    _check_port(raw, prefix, problems)
    serve = None if problems else validate(ServeDeploySchema, raw, prefix, problems)
    if problems or serve is None:
        raise problems.as_error()
    known = tuple(each for each in settings if each is not None)
    plans = tuple(map(_make_plans, serve.applications, known))
    for (at, _), of_app in zip(apps, plans, strict=True):
        _check_plans(of_app, f"{at}.args.card", problems)
    for app, each in zip(serve.applications, known, strict=True):
        for at, message in check_manifests(documents, app, each):
            problems.add(at, message)
    if problems:
        raise problems.as_error()
    return ServeFile(serve, known, plans)


def _check_port(raw: RawMapping, prefix: str, problems: Problems) -> None:
    options = raw.get("http_options")
    port = options.get("port") if isinstance(options, dict) else None
    if isinstance(port, int) and not 1 <= port <= MAX_PORT:
        problems.add(join(prefix, "http_options.port"), f"must be between 1 and {MAX_PORT}")


def _make_plans(app: ServeApplicationSchema, settings: AppSettings) -> tuple[GpuPlan, ...]:
    num_gpus = {each.name: actor_options(each).num_gpus or 0 for each in app.deployments}
    return make_plans(settings, num_gpus)


def _check_plans(plans: tuple[GpuPlan, ...], at: str, problems: Problems) -> None:
    for plan in plans:
        if plan.fits is False:
            problems.add(at, plan.complaint)


def describe(path: Path) -> str:
    """Check the file and describe what it would run: deployments, replicas, CPUs, GPUs, models, devices, and the memory
    plan of each deployment on a GPU and of the editor's host.

    Raises:
        ConfigError: as `check_file`.
    """
    file = check_file(path)
    lines = [f"{path}: no problems", *_describe_middleware(file.serve)]
    for app, settings, plans in zip(file.serve.applications, file.settings, file.plans, strict=True):
        http = file.serve.http_options
        lines.append(f"application {app.name} at http://{http.host}:{http.port}{app.route_prefix}")
        lines += [f"  {line}" for line in _describe_access(http.host, settings)]
        if file.serve.proxy_location == ProxyLocation.EveryNode and isinstance(
            settings.jobs.store, SqliteStoreSettings
        ):
            lines.append(f"  {SQLITE_WARNING}")
        lines += [f"  {_describe_deployment(deployment)}" for deployment in app.deployments]
        lines += [f"  {line}" for line in _describe_models(settings)]
        lines += [f"  {line}" for line in _describe_changes(app, settings)]
        lines += [f"  {line}" for plan in plans for line in plan.table]
        lines += [f"  {line}" for line in _describe_speeds(app, settings, plans)]
        lines += [f"  {line}" for line in _describe_host(settings)]
    return "\n".join(lines)


def _describe_middleware(serve: ServeDeploySchema) -> Iterator[str]:
    options = serve.controller_options
    runtime_env = {} if options is None else options.runtime_env or {}
    # Without a proxy location there is no HTTP at all.
    has_http = serve.proxy_location != ProxyLocation.Disabled
    if has_http and runtime_env.get("env_vars", {}).get(MIDDLEWARE_VARIABLE) != MIDDLEWARE:
        yield MIDDLEWARE_WARNING


def _describe_host(settings: AppSettings) -> Iterable[str]:
    if settings.editor.device != "cuda":
        return ()
    # Imported here: torch and the model libraries take seconds, which a file without a GPU does not need.
    from serve_app.tools.check.host import describe_host

    return describe_host(settings)


def _describe_access(host: str, settings: AppSettings) -> Iterator[str]:
    if is_loopback(host):
        return
    if settings.allow_anonymous:
        yield f"warning: args.allow_anonymous: anyone who can reach {host} may use the service without a key"
    elif settings.api_keys_file is None:
        yield (
            f"warning: {host} is reached from other machines and this file names no API keys: the service starts only "
            f"with {KEYS_VARIABLE} or {FILE_VARIABLE} in the nodes' environment, or args.allow_anonymous: true"
        )


def _describe_deployment(deployment: DeploymentSchema) -> str:
    options = actor_options(deployment)
    cpus = "default CPU" if options.num_cpus is None else f"{options.num_cpus:g} CPU"
    gpus = "no GPU" if not options.num_gpus else f"{options.num_gpus:g} GPU"
    return f"{deployment.name}: {_describe_replicas(deployment)}, each with {cpus} and {gpus}"


def _describe_replicas(deployment: DeploymentSchema) -> str:
    if isinstance(deployment.autoscaling_config, dict):
        scaling = AutoscalingConfig(**deployment.autoscaling_config)
        return f"{scaling.min_replicas} to {scaling.max_replicas} replicas"
    number = deployment.num_replicas
    if not isinstance(number, int | str):
        return "default replicas"
    return "1 replica" if number == 1 else f"{number} replicas"


def _describe_speeds(app: ServeApplicationSchema, settings: AppSettings, plans: tuple[GpuPlan, ...]) -> Iterator[str]:
    if {"Editor", "Rewriter"} <= {plan.deployment for plan in plans}:
        # Imported here, as in plans.py.
        from serve_app.tools.check.speed import rewriter_warning

        warning = rewriter_warning(settings, {each.name: most_replicas(each) for each in app.deployments})
        if warning is not None:
            yield warning


def _describe_changes(app: ServeApplicationSchema, settings: AppSettings) -> Iterator[str]:
    """What needs a restart, where some adapters may change without."""
    where = f"the user_config of {' and '.join(ADAPTED)}"
    if any(each.name in ADAPTED and user_config_of(each) is not None for each in app.deployments):
        yield f"a change of the adapters in {where} needs no restart; a change of args restarts every deployment"
    elif settings.editor.unfused_loras:
        yield f"a change of these adapters restarts every deployment, as they are in args; in {where}, it would not"


def _describe_models(settings: AppSettings) -> Iterator[str]:
    editor, rewriter = settings.editor, settings.rewriter
    yield f"editor model: {editor.base.path} on {editor.device} in {editor.dtype}"
    for lora in editor.loras:
        when = "" if lora.is_fused else f", apply: {lora.apply}"
        yield f"adapter {lora.name}: {lora.source.path} ({lora.file}) at {lora.weight:g}{when}"
    if rewriter is None:
        yield "rewriter model: none"
    elif rewriter.source is None:
        yield f"rewriter model: {rewriter.model} at {rewriter.endpoint}"
    else:
        yield f"rewriter model: {rewriter.source.path} on {rewriter.device} in {rewriter.dtype}"
