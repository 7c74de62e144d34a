"""Every query of configs/grafana finds its metrics in a running service, and no label contains client input."""

import time
from collections.abc import Callable

import pytest
import requests

from tests.configs.queries import grouping, metrics, queries
from tests.service.conftest import Service
from tests.service.ray_session import Samples, exported, samples
from tests.service.receiver import Receiver
from tests.service.test_jobs import LONG, PICTURE, QUICK, ended, post, start, until_in_progress

EXPORT_TIMEOUT_S = 60
"""A health check's period and that of Ray's reports, with a margin for a busy machine."""

ROUTES = {
    "/run",
    "/runsync",
    "/v1/images/edits",
    *(f"/{action}/{{job_id}}" for action in ("status", "cancel", "retry")),
}

KINDS = (
    ("edits_ended_total", "end", {"completed", "cancelled"}),
    ("jobs_ended_total", "state", {"COMPLETED", "CANCELLED", "FAILED"}),
    ("webhooks_total", "outcome", {"taken", "refused"}),
    ("cache_lookups_total", "result", {"hit", "miss"}),
    ("requests_total", "status", {"200", "404", "422"}),
    ("requests_total", "route", ROUTES),
    ("stage_seconds_count", "stage", {"queue", "encode", "steps", "decode", "compress"}),
)
"""Metrics with a label and the values that this module's requests produce; a webhook is refused after its third try.
Ray exports a metric's values some seconds after the request, so the module waits for all of them."""


@pytest.fixture(scope="module")
def busy(service: Service, receiver: Receiver) -> Samples:
    """The metrics after requests of every kind."""
    service.run(**QUICK, rewrite_prompt=True)
    again = service.run(**QUICK)
    assert requests.get(f"{service.url}/status/nobody-knows-it", timeout=30).status_code == 404
    edit = {"prompt": "x", "image": f"data:image/png;base64,{PICTURE}", "size": "64x64", "num_inference_steps": 1}
    response = requests.post(f"{service.url}/v1/images/edits", json=edit, timeout=60)
    assert response.status_code == 200, response.text
    assert requests.post(f"{service.url}/v1/images/edits", json={"prompt": "x"}, timeout=30).status_code == 422
    cancelled = start(service, LONG)
    until_in_progress(service, cancelled)
    post(service, f"/cancel/{cancelled}")
    failed = start(service, LONG, policy={"executionTimeout": 1})
    assert ended(service, failed)["status"] == "FAILED"
    assert post(service, f"/v2/an-endpoint-of-mine/retry/{failed}").status_code == 200
    for status in ("200", "500"):
        ended(service, start(service, webhook=f"{receiver.origin}/hook/{status}"))
    assert again["status"] == "COMPLETED"
    return exported_once(service, lambda found: not missing(found) and all(holds(found, *kind) for kind in KINDS))


def exported_once(service: Service, is_complete: Callable[[Samples], bool]) -> Samples:
    """The exported metrics, once they are complete or the time limit has passed."""
    deadline = time.monotonic() + EXPORT_TIMEOUT_S
    while not is_complete(found := samples(exported(service))) and time.monotonic() < deadline:
        time.sleep(1)
    return found


def missing(found: Samples) -> set[str]:
    return {name for query in queries() for name, _ in metrics(query)} - set(found)


def holds(found: Samples, name: str, label: str, kinds: set[str]) -> bool:
    return kinds <= {labels[label] for labels in found.get(f"ray_camera_edit_{name}", [])}


@pytest.mark.parametrize("query", queries())
def test_every_query_finds_its_metrics_and_labels(busy: Samples, query: str) -> None:
    for name, selected in metrics(query):
        assert name in busy
        assert selected | grouping(query) <= set().union(*busy[name])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0])
def test_events_are_counted_by_kind(busy: Samples, kind: tuple[str, str, set[str]]) -> None:
    assert holds(busy, *kind)


def test_requests_are_counted_by_route_and_not_by_path(busy: Samples) -> None:
    counted = {(labels["dialect"], labels["route"]) for labels in busy["ray_camera_edit_requests_total"]}
    assert counted >= {("openai", "/v1/images/edits"), ("runpod", "/retry/{job_id}")}
    assert not [route for _, route in counted if "nobody" in route or "mine" in route]
