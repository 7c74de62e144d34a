"""The rules for an application, for its deployments, and between both."""

from collections.abc import Mapping

from pydantic import BaseModel, ValidationError
from ray.serve.config import AutoscalingConfig, DeploymentActorConfig, GangSchedulingConfig, RequestRouterConfig
from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema, ServeApplicationSchema

from serve_app.config import AdapterSettings, AppSettings
from serve_app.tools.check.schema import Problems, RawMapping, entries, find_unknown_keys, suggest, validate

IMPORT_PATH = "serve_app.app:build"
DEPLOYMENT_NAMES = ("Ingress", "Rewriter", "Editor", "Jobs")
ADAPTED = ("Editor", "Ingress")
"""The deployments whose user_config lists adapters."""

# DeploymentSchema accepts any mapping here; Serve validates these models only when it deploys.
_LATE_MODELS: dict[str, type[BaseModel]] = {
    "autoscaling_config": AutoscalingConfig,
    "request_router_config": RequestRouterConfig,
    "gang_scheduling_config": GangSchedulingConfig,
    "deployment_actors": DeploymentActorConfig,
}

# By deployment name: the path of the entry, and the parsed entry, None where it is not valid.
Deployments = Mapping[str, tuple[str, DeploymentSchema | None]]


def check_application(app: object, at: str, problems: Problems) -> AppSettings | None:
    if not isinstance(app, dict):
        problems.add(at, "must be a mapping")
        return None
    if app.get("import_path", IMPORT_PATH) != IMPORT_PATH:
        problems.add(f"{at}.import_path", f"must be {IMPORT_PATH}")
    prefix = app.get("route_prefix", "/")
    if isinstance(prefix, str) and not prefix.startswith("/"):
        problems.add(f"{at}.route_prefix", f"must begin with a slash: /{prefix}")
    validate(ServeApplicationSchema, emptied(app, "deployments"), at, problems)
    deployments = _check_deployments(app.get("deployments"), f"{at}.deployments", problems)
    args = app.get("args", {})
    if not isinstance(args, dict):
        return None  # ServeApplicationSchema reports this.
    find_unknown_keys(args, AppSettings, f"{at}.args", problems)
    settings = validate(AppSettings, args, f"{at}.args", problems)
    adapters = _check_adapters(deployments, f"{at}.deployments", problems)
    _check_jobs(deployments, problems)
    if settings is None:
        return None
    _check_together(settings, deployments, f"{at}.deployments", problems)
    if adapters is None:
        return settings
    for index, lora in enumerate(settings.editor.loras):
        if not lora.is_fused:
            problems.add(
                f"{at}.args.editor.loras[{index}]",
                f"has apply: {lora.apply}, and user_config replaces such adapters: move it there",
            )
    try:
        return settings.with_adapters(adapters.loras)
    except ValueError as problem:
        problems.add(f"{at}.deployments", f"user_config and args: {problem}")
        return settings


def _check_adapters(deployments: Deployments, at: str, problems: Problems) -> AdapterSettings | None:
    """The user_config of Editor and Ingress, which must be the same."""
    configs = {name: None if entry is None else user_config_of(entry) for name, (_, entry) in deployments.items()}
    if not any(config is not None for config in configs.values()):
        return None
    for name, config in configs.items():
        if config is not None and name not in ADAPTED:
            problems.add(f"{deployments[name][0]}.user_config", f"has no effect; {' and '.join(ADAPTED)} have one")
    editor_at, config = deployments.get("Editor", (at, None))[0], configs.get("Editor")
    if any(configs.get(name) != config for name in ADAPTED):
        problems.add(
            at, f"{' and '.join(ADAPTED)} need the same user_config: name one with & and refer to it with * in YAML"
        )
    if not isinstance(config, dict):
        return None
    find_unknown_keys(config, AdapterSettings, f"{editor_at}.user_config", problems)
    return validate(AdapterSettings, config, f"{editor_at}.user_config", problems)


def _check_deployments(listed: object, at: str, problems: Problems) -> Deployments:
    deployments: dict[str, tuple[str, DeploymentSchema | None]] = {}
    for entry_at, entry in entries(listed, at):
        if not isinstance(entry, dict):
            problems.add(entry_at, "must be a mapping")
            continue
        name = entry.get("name")
        if isinstance(name, str) and name not in DEPLOYMENT_NAMES:
            problems.add(f"{entry_at}.name", f"no such deployment{suggest(name, DEPLOYMENT_NAMES)}")
        elif str(name) in deployments:
            problems.add(f"{entry_at}.name", f"{name} is listed twice")
        deployments[str(name)] = entry_at, _check_deployment(entry, entry_at, problems)
    return deployments


def _check_deployment(entry: RawMapping, at: str, problems: Problems) -> DeploymentSchema | None:
    for key, model in _LATE_MODELS.items():
        for entry_at, late in entries(entry.get(key), f"{at}.{key}"):
            if isinstance(late, dict):
                validate(model, late, entry_at, problems)
    if isinstance(entry.get("num_replicas"), int) and entry.get("autoscaling_config") is not None:
        problems.add(f"{at}.num_replicas", "cannot be set beside autoscaling_config; keep one of them")
        # Serve rejects the pair too, but then validates nothing else.
        entry = {key: value for key, value in entry.items() if key != "num_replicas"}
    return validate(DeploymentSchema, entry, at, problems)


def _check_together(settings: AppSettings, deployments: Deployments, at: str, problems: Problems) -> None:
    """The rules between the application's settings and the options of its deployments."""
    _check_gpus("Editor", settings.editor.device, deployments, at, problems)
    _check_batches("Editor", settings.editor.max_batch_size, deployments, problems)
    if settings.rewriter is not None and settings.rewriter_device is not None:
        _check_gpus("Rewriter", settings.rewriter_device, deployments, at, problems)
        _check_batches("Rewriter", settings.rewriter.max_batch_size, deployments, problems)
    elif "Rewriter" in deployments:
        reason = "is not set" if settings.rewriter is None else "names an endpoint"
        problems.add(f"{deployments['Rewriter'][0]}.name", f"args.rewriter {reason}, so there is no Rewriter")


def _check_jobs(deployments: Deployments, problems: Problems) -> None:
    deployment_at, deployment = deployments.get("Jobs", ("", None))
    if deployment is None:
        return
    try:
        replicas = {least_replicas(deployment), most_replicas(deployment)}
    except ValidationError:
        return  # Of autoscaling_config; it is reported already.
    if replicas != {1}:
        key = "autoscaling_config" if isinstance(deployment.autoscaling_config, dict) else "num_replicas"
        problems.add(
            f"{deployment_at}.{key}",
            "must give Jobs exactly one replica: of several, each reports another status of a job, so that it goes "
            "backwards; without one, no job runs",
        )


def _check_batches(name: str, max_batch_size: int, deployments: Deployments, problems: Problems) -> None:
    deployment_at, deployment = deployments.get(name, ("", None))
    # An option that the file does not set holds Serve's default marker, which is no integer.
    if deployment is None or not isinstance(deployment.max_ongoing_requests, int):
        return
    if deployment.max_ongoing_requests < max_batch_size:
        message = f"must be at least args.{name.lower()}.max_batch_size ({max_batch_size}), or no batch fills"
        problems.add(f"{deployment_at}.max_ongoing_requests", message)


def _check_gpus(name: str, device: str, deployments: Deployments, at: str, problems: Problems) -> None:
    reason = f"args.{name.lower()}.device is {device}"
    deployment_at, deployment = deployments.get(name, (at, None))
    if name not in deployments and device == "cuda":
        problems.add(at, f"must list {name} with num_gpus above 0: {reason}")
    if deployment is None:
        return  # Not listed, or its own problems are reported already.
    num_gpus = actor_options(deployment).num_gpus
    wants_gpu = num_gpus is not None and num_gpus > 0
    if wants_gpu != (device == "cuda"):
        expected = "0 or absent" if wants_gpu else "above 0"
        problems.add(f"{deployment_at}.ray_actor_options.num_gpus", f"must be {expected}: {reason}")


def user_config_of(deployment: DeploymentSchema) -> object:
    """What the file has; None: nothing. An option that it does not set holds Serve's default marker."""
    return deployment.user_config if "user_config" in deployment.model_fields_set else None


def actor_options(deployment: DeploymentSchema) -> RayActorOptionsSchema:
    options: object = deployment.ray_actor_options
    return options if isinstance(options, RayActorOptionsSchema) else RayActorOptionsSchema()


def least_replicas(deployment: DeploymentSchema) -> int:
    scaling = _scaling(deployment)
    return _fixed_replicas(deployment) if scaling is None else scaling.min_replicas


def most_replicas(deployment: DeploymentSchema) -> int:
    scaling = _scaling(deployment)
    return _fixed_replicas(deployment) if scaling is None else scaling.max_replicas


def _scaling(deployment: DeploymentSchema) -> AutoscalingConfig | None:
    own = deployment.autoscaling_config if isinstance(deployment.autoscaling_config, dict) else None
    if deployment.num_replicas == "auto":
        automatic: AutoscalingConfig = AutoscalingConfig.default()  # type: ignore[no-untyped-call]
        # As Serve's handle_num_replicas_auto: what the file does not set is automatic.
        return AutoscalingConfig(**{**automatic.model_dump(exclude_unset=True), **(own or {})})
    return None if own is None else AutoscalingConfig(**own)


def _fixed_replicas(deployment: DeploymentSchema) -> int:
    return deployment.num_replicas if isinstance(deployment.num_replicas, int) else 1


def emptied(value: RawMapping, key: str) -> RawMapping:
    """`value` with an empty list for its list at `key`."""
    return {**value, key: []} if isinstance(value.get(key), list) else value
