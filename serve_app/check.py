"""Checks a Serve config file strictly, before anything starts.

Serve ignores keys that it does not know: a misspelt `autoscaling_config` runs one replica without a word. Here each key
is looked up in Serve's own pydantic models, then Serve's validators run, then the application's settings and the rules
that tie both together. All problems are told at once, one per line, as `path.to.key: what is wrong`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from ray.serve.config import AutoscalingConfig, DeploymentActorConfig, GangSchedulingConfig, RequestRouterConfig
from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from serve_app.config import AppSettings
from serve_app.errors import ConfigError

IMPORT_PATH = "serve_app.app:build"
DEPLOYMENT_NAMES = ("Ingress", "Rewriter", "Editor")

# DeploymentSchema takes these as any mapping; Serve reads them as models only when it deploys.
_LATE_MODELS: dict[str, type[BaseModel]] = {
    "autoscaling_config": AutoscalingConfig,
    "request_router_config": RequestRouterConfig,
    "gang_scheduling_config": GangSchedulingConfig,
    "deployment_actors": DeploymentActorConfig,
}

Model = TypeVar("Model", bound=BaseModel)
RawMapping = Mapping[object, object]
# By name: the path of the entry, and what Serve read there, None where it could not be read.
Deployments = Mapping[str, tuple[str, DeploymentSchema | None]]


@dataclass(frozen=True)
class ServeFile:
    """A Serve config file that passed every check. `settings` holds one entry per application, in the file's order."""

    serve: ServeDeploySchema
    settings: tuple[AppSettings, ...]


def check_file(path: Path) -> ServeFile:
    """Read and check a Serve config file, or the `serveConfigV2` of the RayService in a Kubernetes file.

    Raises:
        ConfigError: all problems that were found, one per line.
    """
    problems = Problems(path)
    prefix, raw = _read_serve_config(path)
    find_unknown_keys(raw, ServeDeploySchema, prefix, problems)
    # From the leaves up, so that one broken deployment does not hide what is wrong with its neighbours.
    apps = list(_entries(raw.get("applications"), _join(prefix, "applications")))
    settings = [_check_application(app, at, problems) for at, app in apps]
    if not apps:
        problems.add(_join(prefix, "applications"), "must list an application")
    _validate(ServeDeploySchema, _emptied(raw, "applications"), prefix, problems)
    serve = None if problems else _validate(ServeDeploySchema, raw, prefix, problems)
    if problems or serve is None:
        raise problems.as_error()
    return ServeFile(serve, tuple(each for each in settings if each is not None))


def describe(path: Path) -> str:
    """Check the file and say in a few lines what it would run: deployments, replicas, CPUs, GPUs, models, devices.

    Raises:
        ConfigError: as `check_file`.
    """
    file = check_file(path)
    lines = [f"{path}: no problems"]
    for app, settings in zip(file.serve.applications, file.settings, strict=True):
        http = file.serve.http_options
        lines.append(f"application {app.name} at http://{http.host}:{http.port}{app.route_prefix}")
        lines += [f"  {_describe_deployment(deployment)}" for deployment in app.deployments]
        lines += [f"  {line}" for line in _describe_models(settings)]
    return "\n".join(lines)


class Problems:
    """The problems found so far, by path. A place that already has one of an earlier, closer look is left at that."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, at: str, message: str) -> None:
        self._lines.setdefault(at, []).append(" ".join(message.split()))

    def add_all(self, found: Mapping[str, list[str]]) -> None:
        for at, messages in found.items():
            if at not in self._lines:
                for message in dict.fromkeys(messages):
                    self.add(at, message)

    def as_error(self) -> ConfigError:
        lines = [f"{at}: {message}" if at else message for at, each in self._lines.items() for message in each]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        return ConfigError("\n".join([f"{self._path}: {count}", *lines]))


class _StrictLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys; this loader refuses them."""

    # Composing comes before merge keys (`<<`) are spread out, which may well override a key.
    def compose_mapping_node(self, anchor: dict[object, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} stands here twice", problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return node


def _load_documents(text: str, where: str) -> list[object]:
    try:
        return list(yaml.load_all(text, Loader=_StrictLoader))
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ConfigError(f"{where}: cannot be read as YAML{line}: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-02-30
        raise ConfigError(f"{where}: cannot be read as YAML: {' '.join(str(error).split())}") from error


def _read_serve_config(path: Path) -> tuple[str, RawMapping]:
    """The Serve config in a file, and the path of keys that leads to it."""
    try:
        documents = _load_documents(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    services = [each for each in documents if isinstance(each, dict) and each.get("kind") == "RayService"]
    if len(services) == 1:
        return "spec.serveConfigV2", _serve_config_of(services[0], path)
    if len(documents) != 1:
        raise ConfigError(f"{path}: must hold one Serve config or one RayService, and holds {len(documents)} documents")
    return "", _as_mapping(documents[0], str(path))


def _serve_config_of(service: RawMapping, path: Path) -> RawMapping:
    where = f"{path}: spec.serveConfigV2"
    spec = service.get("spec")
    text = spec.get("serveConfigV2") if isinstance(spec, dict) else None
    if not isinstance(text, str):
        raise ConfigError(f"{where}: must be there, as a block of text (`serveConfigV2: |`)")
    documents = _load_documents(text, where)
    return _as_mapping(documents[0] if len(documents) == 1 else None, where)


def _as_mapping(value: object, where: str) -> RawMapping:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: must be a mapping with keys such as `applications`")
    return value


def find_unknown_keys(value: object, model: type[BaseModel], at: str, problems: Problems) -> None:
    """Report each key below `value` that its pydantic model lacks. Fields that are plain mappings are left free."""
    if not isinstance(value, dict):
        return
    fields = _fields_by_key(model)
    for key, inner in value.items():
        here = _join(at, key)
        field = fields.get(str(key))
        if field is None:
            problems.add(here, f"unknown key{_suggest(str(key), fields)}")
        elif inner_model := _model_in(field.annotation):
            for entry_at, entry in _entries(inner, here):
                find_unknown_keys(entry, inner_model, entry_at, problems)


def _fields_by_key(model: type[BaseModel]) -> dict[str, FieldInfo]:
    fields = dict(model.model_fields)
    for name, field in model.model_fields.items():
        if field.alias is not None:
            fields[field.alias] = field
            if not model.model_config.get("populate_by_name"):
                del fields[name]
    return fields


def _model_in(annotation: object) -> type[BaseModel] | None:
    """The pydantic model within an annotation such as `Optional[List[Model]]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _validate(model: type[Model], value: RawMapping, at: str, problems: Problems) -> Model | None:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found: dict[str, list[str]] = {}
        for each in error.errors(include_url=False):
            place = _locate(at, each["loc"], value)
            found.setdefault(place, []).append(each["msg"].removeprefix("Value error, "))
        problems.add_all(found)
    except (AttributeError, TypeError) as error:
        # Serve's "before" validators meet unchecked values, and break instead of refusing.
        problems.add(at, f"holds a value of a wrong type, on which Serve broke: {error}")
    return None


def _locate(at: str, location: tuple[int | str, ...], value: object) -> str:
    """The path of an error, without the names of union members that pydantic puts behind the keys."""
    for key in location:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int):
            value = value[key]
        else:
            break
        at = f"{at}[{key}]" if isinstance(key, int) else _join(at, key)
    return at


def _check_application(app: object, at: str, problems: Problems) -> AppSettings | None:
    if not isinstance(app, dict):
        problems.add(at, "must be a mapping")
        return None
    if app.get("import_path", IMPORT_PATH) != IMPORT_PATH:
        problems.add(f"{at}.import_path", f"must be {IMPORT_PATH}")
    _validate(ServeApplicationSchema, _emptied(app, "deployments"), at, problems)
    deployments = _check_deployments(app.get("deployments"), f"{at}.deployments", problems)
    args = app.get("args", {})
    if not isinstance(args, dict):
        return None  # ServeApplicationSchema has told so.
    find_unknown_keys(args, AppSettings, f"{at}.args", problems)
    settings = _validate(AppSettings, args, f"{at}.args", problems)
    if settings is not None:
        _check_fit(settings, deployments, f"{at}.deployments", problems)
    return settings


def _check_deployments(entries: object, at: str, problems: Problems) -> Deployments:
    deployments: dict[str, tuple[str, DeploymentSchema | None]] = {}
    for entry_at, entry in _entries(entries, at):
        if not isinstance(entry, dict):
            problems.add(entry_at, "must be a mapping")
            continue
        name = entry.get("name")
        if isinstance(name, str) and name not in DEPLOYMENT_NAMES:
            problems.add(f"{entry_at}.name", f"no such deployment{_suggest(name, DEPLOYMENT_NAMES)}")
        elif str(name) in deployments:
            problems.add(f"{entry_at}.name", f"{name} is listed twice")
        deployments[str(name)] = entry_at, _check_deployment(entry, entry_at, problems)
    return deployments


def _check_deployment(entry: RawMapping, at: str, problems: Problems) -> DeploymentSchema | None:
    for key, model in _LATE_MODELS.items():
        for entry_at, late in _entries(entry.get(key), f"{at}.{key}"):
            if isinstance(late, dict):
                _validate(model, late, entry_at, problems)
    if isinstance(entry.get("num_replicas"), int) and entry.get("autoscaling_config") is not None:
        problems.add(f"{at}.num_replicas", "cannot stand beside autoscaling_config; keep one of them")
        # Serve refuses the pair too, but without looking at anything else.
        entry = {key: value for key, value in entry.items() if key != "num_replicas"}
    return _validate(DeploymentSchema, entry, at, problems)


def _check_fit(settings: AppSettings, deployments: Deployments, at: str, problems: Problems) -> None:
    """The rules between the application's settings and the options of its deployments."""
    _check_gpus("Editor", settings.editor.device, deployments, at, problems)
    if settings.rewriter is not None:
        _check_gpus("Rewriter", settings.rewriter.device, deployments, at, problems)
    elif "Rewriter" in deployments:
        problems.add(f"{deployments['Rewriter'][0]}.name", "args.rewriter is not set, so there is no Rewriter")
    editor_at, editor = deployments.get("Editor", (at, None))
    # Serve marks an option that the file leaves to the code with a value of another type.
    if editor is None or not isinstance(editor.max_ongoing_requests, int):
        return
    if editor.max_ongoing_requests < settings.editor.max_batch_size:
        message = f"must be at least args.editor.max_batch_size ({settings.editor.max_batch_size}), or no batch fills"
        problems.add(f"{editor_at}.max_ongoing_requests", message)


def _check_gpus(name: str, device: str, deployments: Deployments, at: str, problems: Problems) -> None:
    reason = f"args.{name.lower()}.device is {device}"
    deployment_at, deployment = deployments.get(name, (at, None))
    if name not in deployments and device == "cuda":
        problems.add(at, f"must list {name} with num_gpus above 0: {reason}")
    if deployment is None:
        return  # Not listed, or its own problems have been told.
    num_gpus = _actor_options(deployment).num_gpus
    wants_gpu = num_gpus is not None and num_gpus > 0
    if wants_gpu != (device == "cuda"):
        wish = "0 or absent" if wants_gpu else "above 0"
        problems.add(f"{deployment_at}.ray_actor_options.num_gpus", f"must be {wish}: {reason}")


def _actor_options(deployment: DeploymentSchema) -> RayActorOptionsSchema:
    options: object = deployment.ray_actor_options
    return options if isinstance(options, RayActorOptionsSchema) else RayActorOptionsSchema()


def _describe_deployment(deployment: DeploymentSchema) -> str:
    options = _actor_options(deployment)
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


def _describe_models(settings: AppSettings) -> Iterator[str]:
    editor, rewriter = settings.editor, settings.rewriter
    yield f"editor model: {editor.base.path} on {editor.device} in {editor.dtype}"
    for lora in editor.loras:
        yield f"adapter {lora.name}: {lora.source.path} ({lora.file}) at {lora.weight:g}"
    if rewriter is None:
        yield "rewriter model: none"
    else:
        yield f"rewriter model: {rewriter.source.path} on {rewriter.device} in {rewriter.dtype}"


def _emptied(value: RawMapping, key: str) -> RawMapping:
    """`value` with an empty list for its list at `key`."""
    return {**value, key: []} if isinstance(value.get(key), list) else value


def _entries(value: object, at: str) -> Iterator[tuple[str, object]]:
    """A list's entries, or the value itself, with their paths; nothing for null."""
    if isinstance(value, list):
        yield from ((f"{at}[{index}]", entry) for index, entry in enumerate(value))
    elif value is not None:
        yield at, value


def _join(at: str, key: object) -> str:
    return f"{at}.{key}" if at else str(key)


def _suggest(word: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else f" (known: {', '.join(known)})"
