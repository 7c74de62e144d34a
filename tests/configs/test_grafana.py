"""configs/grafana: a valid Grafana dashboard and valid Prometheus rules that use only metrics that are emitted.
tests/service/test_metrics.py checks the same queries against a running service."""

import re

import pytest

from tests.configs.queries import dashboard, metrics, queries, rules, targets
from tests.conftest import ROOT

SOURCES = "\n".join(path.read_text() for path in (ROOT / "serve_app").rglob("metrics.py"))
EMITTED = set(re.findall(r'"(camera_edit_\w+)"', SOURCES))
SUFFIX = re.compile(r"_(total|bucket|sum|count)$")


def test_the_dashboard_has_what_grafana_needs() -> None:
    board = dashboard()
    assert board["schemaVersion"] >= 39
    assert (board["title"], board["uid"]) == ("qwen-camera-edit", "qwen-camera-edit")
    source, cluster = board["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    # Without Kubernetes, no metric has the label: only `.*` matches it.
    assert (cluster["name"], cluster["includeAll"], cluster["allValue"]) == ("cluster", True, ".*")
    assert cluster["current"]["value"] == "$__all"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


def test_every_panel_queries_the_chosen_data_source() -> None:
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    assert panels
    for panel in panels:
        assert panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert all(target["datasource"]["uid"] == "${datasource}" for target in targets())


def test_every_query_of_the_dashboard_heeds_the_chosen_cluster() -> None:
    for target in targets():
        names = [name for name, _ in metrics(target["expr"])]
        assert target["expr"].count('ray_io_cluster=~"$cluster"') == len(names)


def test_what_hangs_is_told_apart_by_replica() -> None:
    by_name = {rule["alert"]: rule["expr"] for rule in rules()}
    assert by_name["CameraEditEngineStalls"].count("by (ray_io_cluster, replica)") == 2
    assert "sum" not in by_name["CameraEditEditorUnhealthy"]


def test_panels_do_not_cover_each_other() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        own = {(place["x"] + column, place["y"] + line) for column in range(place["w"]) for line in range(place["h"])}
        assert max(column for column, _ in own) < 24, panel["title"]
        assert not cells & own, panel["title"]
        cells |= own


def test_every_alert_has_a_severity_a_summary_and_a_description() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert re.fullmatch(r"\d+[smh]", rule["for"]), rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}


@pytest.mark.parametrize("query", queries())
def test_every_query_uses_metrics_that_the_service_or_ray_emits(query: str) -> None:
    used = metrics(query)
    assert used
    for name, _ in used:
        if name.startswith("ray_camera_edit_"):
            assert SUFFIX.sub("", name.removeprefix("ray_")) in EMITTED
        else:
            assert name.startswith(("ray_serve_", "ray_node_"))


def test_every_metric_of_the_service_is_queried() -> None:
    queried = {SUFFIX.sub("", name.removeprefix("ray_")) for query in queries() for name, _ in metrics(query)}
    assert queried >= EMITTED
