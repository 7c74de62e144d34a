"""`camera-edit generate`: generates the files in configs/ that follow from the cluster's Serve config.

They are written to the folders that their readers can reach: kustomize reads no file outside of a kustomization's own
folder, and KubeRay's `serveConfigV2` is text inside of a RayService.
"""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from serve_app.config import CONFIGS, AppSettings
from serve_app.tools.check import check_file
from serve_app.tools.doctor.weights import is_repository, weights_of

Yaml = Any  # A parsed document of any shape.

WEIGHTS_FOLDER = PurePosixPath("/weights")
CPU_GROUP = {"camera-edit/group": "cpu"}
"""The label of the Ray nodes that run the deployments without a GPU."""

GIB = 2**30
MAX_STORE_BYTES = 12 * GIB
"""Of the jobs' Redis, whose maxmemory is 16 GB: the rest is for indexes, and for results beyond the limit."""

VM_REDIS = "redis://head.internal.example.com:6380/0"

_HEAD = "# Generated from {source} by `camera-edit generate`. Its comments explain the values.\n"


def write_manifests(file: Path, configs: Path = CONFIGS) -> list[Path]:
    """Write the generated files below the folder `configs`, and return their paths.

    Raises:
        ConfigError: the Serve config does not pass `camera-edit check`.
    """
    written = []
    for name, text in generate(file, configs).items():
        path = configs / name
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def generate(file: Path, configs: Path) -> dict[str, str]:
    """The texts of the generated files, by their paths below the folder `configs`.

    Args:
        file: a Serve config with one application and models from the hub.
    """
    (settings,) = check_file(file).settings
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    head = _HEAD.format(source=file.name)
    alerts = yaml.safe_load((configs / "grafana" / "alerts.yaml").read_text(encoding="utf-8"))
    return {
        "kuberay/base/serve-config.yaml": head + _ray_service(_changed(config, _for_pods, _surging)),
        "kuberay/8gpu-fixed/serve-config.yaml": head + _ray_service(_changed(config, _for_pods, _fixed)),
        "kuberay/base/weights.txt": "".join(f"{line}\n" for line in _weights(settings)),
        "vm/serve.yaml": head + _dump(_changed(config, _with_redis(VM_REDIS), _surging)),
        "grafana/prometheusrule.yaml": _HEAD.format(source="alerts.yaml") + _prometheus_rule(alerts),
    }


def _changed(config: Yaml, *changes: Callable[[Yaml], None]) -> Yaml:
    copied = copy.deepcopy(config)
    for change in changes:
        change(copied["applications"][0])
    return copied


def _for_pods(app: Yaml) -> None:
    for source in _sources(app):
        # A source that an anchor shares between Editor and Ingress comes twice, and is a folder by then.
        if is_repository(source["path"]):
            source.update(path=_folder(source["path"], source.get("revision")), revision=None)
    _with_redis("redis://camera-edit-jobs-redis:6379/0")(app)
    for deployment in app["deployments"]:
        if not _num_gpus(deployment):
            deployment.setdefault("ray_actor_options", {})["label_selector"] = CPU_GROUP


def _sources(app: Yaml) -> Iterator[Yaml]:
    """The sources of weights that an application names, in `args` and in `user_config`."""
    editor, rewriter = app["args"]["editor"], app["args"].get("rewriter") or {}
    configs = [deployment.get("user_config") or {} for deployment in app["deployments"]]
    yield editor["base"]
    for each in (editor, *configs):
        yield from (lora["source"] for lora in each.get("loras") or ())
    if rewriter.get("source"):
        yield rewriter["source"]


def _num_gpus(deployment: Yaml) -> float:
    options = deployment.get("ray_actor_options") or {}
    return float(options.get("num_gpus") or 0)


def _with_redis(url: str) -> Callable[[Yaml], None]:
    def change(app: Yaml) -> None:
        app["args"].setdefault("jobs", {}).update(
            store={"kind": "redis", "url": url},
            max_store_bytes=MAX_STORE_BYTES,
            max_store_bytes_per_key=MAX_STORE_BYTES // 2,
        )

    return change


def _surging(app: Yaml) -> None:
    """One editor more during an update: rounded up, a percent is one replica."""
    _editor(app)["max_surge_percent"] = 1


def _fixed(app: Yaml) -> None:
    """As many replicas as there may be, and updates that replace one editor after another in its place."""
    for deployment in app["deployments"]:
        if _num_gpus(deployment) and "autoscaling_config" in deployment:
            deployment["num_replicas"] = deployment.pop("autoscaling_config")["max_replicas"]
    editor = _editor(app)
    # Serve rounds down, and replaces at least one.
    editor.update(max_surge_percent=0, rolling_update_percentage=math.floor(100 / editor["num_replicas"]) / 100)


def _editor(app: Yaml) -> Yaml:
    (editor,) = [each for each in app["deployments"] if each["name"] == "Editor"]
    return editor


def _weights(settings: AppSettings) -> Iterator[str]:
    """Lines of a folder, its repository and commit, and of LoRAs the files, as `FILE` or `FILE:SHA256`."""
    lines: dict[str, dict[str, None]] = {}
    for weights in filter(lambda each: each.is_repository, weights_of(settings)):
        path, revision = weights.source.path, weights.source.revision
        checksum = "" if weights.sha256 is None else f":{weights.sha256}"
        files = lines.setdefault(f"{_folder(path, revision)} {path} {revision or 'main'}", {})
        files.update(dict.fromkeys(() if weights.parts else (f"{each}{checksum}" for each in weights.files)))
    for line, files in lines.items():
        yield " ".join([line, *files])


def _folder(repository: str, revision: str | None) -> str:
    """OWNER/COMMIT/NAME: its last part is the repository's name, by which the check and pictures' metadata know it."""
    commit = (revision or "main")[:12].replace("/", "--")
    return str(WEIGHTS_FOLDER / PurePosixPath(repository).parent / commit / PurePosixPath(repository).name)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and indents lists as the other files do."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _dump(value: Yaml) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=1000)


def _ray_service(config: Yaml) -> str:
    spec = {"serveConfigV2": _dump(config)}
    return _dump({"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "camera-edit"}, "spec": spec})


def _prometheus_rule(spec: Yaml) -> str:
    kind = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule"}
    return _dump({**kind, "metadata": {"name": "camera-edit"}, "spec": spec})
