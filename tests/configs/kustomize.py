"""Renders the kustomizations of configs/: the part of kustomize that they use, and an error for any other.

`test_kustomize.py` compares the results with those of `kubectl kustomize`, where kubectl is installed.
"""

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from serve_app.config import AppSettings
from tests.conftest import ROOT

Yaml = Any  # A parsed document of any shape.

KUBERAY = ROOT / "configs" / "kuberay"
OVERLAYS = ("gke", "eks", "onprem", "spot", "8gpu-fixed", "incremental")
NAMES = ("base", *OVERLAYS)

HEAD = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}


def render(folder: Path) -> list[Yaml]:
    """The documents of a kustomization.

    Raises:
        NotImplementedError: it uses a part of kustomize that is not implemented here.
    """
    config = load(folder / "kustomization.yaml")
    assert {key: config.pop(key) for key in HEAD} == HEAD
    documents = [each for name in config.pop("resources") for each in _resource(folder / name)]
    options = config.pop("generatorOptions", {})
    for generator in config.pop("configMapGenerator", []):
        if options != {"disableNameSuffixHash": True}:
            raise NotImplementedError("names with a hash")
        documents.append(_config_map(folder, generator))
    for patch in config.pop("patches", []):
        _apply(documents, patch, folder)
    for image in config.pop("images", []):
        for document in documents:
            _rename(document, image)
    if config:
        raise NotImplementedError(", ".join(config))
    return documents


def load(path: Path) -> Yaml:
    (document,) = load_all(path.read_text(encoding="utf-8"))
    return document


def load_all(text: str) -> list[Yaml]:
    """The documents of a text, which is parsed once: most tests render the same files again."""
    return copy.deepcopy(_parsed(text))


@cache
def _parsed(text: str) -> list[Yaml]:
    return list(yaml.safe_load_all(text))


def serve_app_of(service: Yaml) -> tuple[ServeApplicationSchema, AppSettings]:
    """The application of a RayService's Serve config, and its settings."""
    (config,) = load_all(service["spec"]["serveConfigV2"])
    (app,) = ServeDeploySchema.model_validate(config).applications
    return app, AppSettings.model_validate(app.args)


def _resource(path: Path) -> list[Yaml]:
    if path.is_dir():
        return render(path)
    return load_all(path.read_text(encoding="utf-8"))


def _config_map(folder: Path, generator: Yaml) -> Yaml:
    metadata = {"name": generator["name"]}
    labels = generator.get("options", {}).get("labels")
    if labels:
        metadata["labels"] = labels
    data = {name: (folder / name).read_text(encoding="utf-8") for name in generator["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _apply(documents: list[Yaml], patch: Yaml, folder: Path) -> None:
    body = load(folder / patch["path"]) if "path" in patch else yaml.safe_load(patch["patch"])
    if isinstance(body, list):
        targets = [each for each in documents if _is_target(each, patch["target"])]
        assert targets, f"{folder}: no document is {patch['target']}"
        for document in targets:
            for operation in body:
                _operate(document, **{key.replace("from", "source"): value for key, value in operation.items()})
        return
    (target,) = [each for each in documents if _identity(each) == _identity(body)]
    if body.get("$patch") == "delete":
        documents.remove(target)
    else:
        _merge(target, body)


def _identity(document: Yaml) -> tuple[str, str, str]:
    return document["apiVersion"], document["kind"], document["metadata"]["name"]


def _is_target(document: Yaml, target: Yaml) -> bool:
    if not target.keys() <= {"kind", "name"}:
        raise NotImplementedError(f"a target with {set(target)}")
    found = {"kind": document["kind"], "name": document["metadata"]["name"]}
    return {**found, **target} == found


def _merge(target: Yaml, patch: Yaml) -> None:
    for key, value in patch.items():
        if isinstance(value, list):
            raise NotImplementedError("merging lists")
        if isinstance(value, dict):
            _merge(target.setdefault(key, {}), value)
        else:
            target[key] = value


def _operate(document: Yaml, op: str, path: str, value: Yaml = None, source: str = "") -> None:
    """One operation of JSON Patch (RFC 6902)."""
    if op == "copy":
        op, value = "add", _find(document, source.split("/")[1:])
    *parents, last = path.split("/")[1:]
    place, key = _find(document, parents), last.replace("~1", "/").replace("~0", "~")
    if isinstance(place, list):
        if op == "add":
            place.insert(len(place) if key == "-" else int(key), copy.deepcopy(value))
        elif op == "replace":
            place[int(key)] = copy.deepcopy(value)
        else:
            raise NotImplementedError(f"{op} in a list")
    elif op == "remove":
        del place[key]
    elif op == "add" or (op == "replace" and key in place):
        place[key] = copy.deepcopy(value)
    else:
        raise KeyError(f"{op} {path}")


def _find(document: Yaml, keys: list[str]) -> Yaml:
    for key in keys:
        name = key.replace("~1", "/").replace("~0", "~")
        document = document[int(name)] if isinstance(document, list) else document[name]
    return document


def _rename(document: Yaml, image: Yaml) -> None:
    for container in containers(document):
        name, _, tag = container["image"].partition(":")
        if name == image["name"]:
            container["image"] = ":".join(filter(None, [image.get("newName", name), image.get("newTag", tag)]))


def containers(value: Yaml) -> Iterator[Yaml]:
    """All containers below a value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("containers", "initContainers"):
                yield from inner
            else:
                yield from containers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from containers(inner)
