"""Reads the Serve config in a YAML file, or in Kubernetes manifests, strictly."""

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from serve_app.errors import ConfigError
from serve_app.tools.check.schema import RawMapping

STDIN = Path("-")


class _StrictLoader(yaml.SafeLoader):
    """Rejects duplicate keys, of which PyYAML would keep the last."""

    # Compose runs before merge keys (`<<`) are expanded; overriding a merged key is not a duplicate.
    def compose_mapping_node(self, anchor: dict[object, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key.value!r}", problem_mark=key.start_mark)
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


def read_documents(path: Path) -> list[object]:
    """The YAML documents of a file; `-` is standard input.

    Raises:
        ConfigError: the file cannot be read, or is no YAML.
    """
    try:
        text = sys.stdin.read() if path == STDIN else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return _load_documents(text, str(path))


def find_serve_config(documents: Sequence[object], path: Path) -> tuple[str, RawMapping]:
    """Return the path of keys to the Serve config in the documents of a file (empty at the top level), and the config.

    Raises:
        ConfigError: there is no Serve config.
    """
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
