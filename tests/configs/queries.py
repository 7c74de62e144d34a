"""The PromQL queries of configs/grafana, and the metrics and labels that they use."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.conftest import ROOT

FOLDER = ROOT / "configs" / "grafana"


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return board


def rules() -> list[dict[str, Any]]:
    """The alerts of all groups."""
    groups = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def targets() -> Iterator[dict[str, Any]]:
    """The queries of the dashboard's panels."""
    for panel in dashboard()["panels"]:
        yield from panel.get("targets", [])


def queries() -> list[str]:
    """Every PromQL expression of dashboard and alerts."""
    return [target["expr"] for target in targets()] + [rule["expr"] for rule in rules()]


CLUSTER_LABEL = "ray_io_cluster"
"""Which RayCluster a metric is from: Prometheus adds it on Kubernetes, no service does."""


def metrics(query: str) -> list[tuple[str, set[str]]]:
    """The metrics of a query, each with the labels that it is filtered by, except the cluster's."""
    found = re.findall(r"\b(ray_(?!io_cluster)\w+)(?:\{([^}]*)\})?", query)
    return [(name, set(re.findall(r"(\w+)\s*[=!]~?", selector)) - {CLUSTER_LABEL}) for name, selector in found]


def grouping(query: str) -> set[str]:
    """The labels that a query groups by, except the cluster's and `le`, the buckets' own."""
    lists = re.findall(r"\bby \(([^)]*)\)", query)
    return {label.strip() for labels in lists for label in labels.split(",")} - {"le", CLUSTER_LABEL}
