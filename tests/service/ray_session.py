"""Ray's session folder of a running service, with all log files, and the metrics that Ray exports."""

from pathlib import Path

import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.service.conftest import Service

Samples = dict[str, list[dict[str, str]]]
"""For each metric by its full name, the labels of its series."""


def session_folder(service: Service) -> Path:
    """Where Ray writes everything of the cluster that `serve run` started."""
    (pid, *_) = service.logged(r"\(ServeController pid=(\d+)\)")
    logs = Path("/tmp/ray").glob(f"session_*/logs/serve/controller_{pid}.log")
    return max(logs, key=lambda log: log.stat().st_mtime).parents[2]  # an earlier process may have had the same pid


def exported(service: Service) -> str:
    """The metrics that the node exports to Prometheus, as text."""
    (port_file,) = session_folder(service).glob("metrics_export_port_*")
    response = requests.get(f"http://127.0.0.1:{port_file.read_text()}/metrics", timeout=30)
    response.raise_for_status()
    return response.text


def samples(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found
