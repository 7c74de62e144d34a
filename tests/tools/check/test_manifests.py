"""The lints for manifests: each finds its fault, planted in the base of configs/kuberay."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml

from serve_app.errors import ConfigError
from serve_app.tools.check import check_file
from serve_app.tools.check.manifests import POOL, check_manifests, memory_gb
from serve_app.tools.check.pods import head_of, quantity
from tests.configs.kustomize import KUBERAY, Yaml, render, serve_app_of

HEAD = "spec.rayClusterConfig.headGroupSpec"
CPU, GPU = (f"spec.rayClusterConfig.workerGroupSpecs[{index}]" for index in range(2))
GROUPS = "spec.rayClusterConfig.workerGroupSpecs"


class Manifests:
    """The base's documents, to plant a fault in."""

    def __init__(self, documents: list[Yaml]) -> None:
        self.documents = documents
        self.service = self.find("RayService", "camera-edit")
        self.spec = self.service["spec"]
        cluster = self.spec["rayClusterConfig"]
        self.head = cluster["headGroupSpec"]
        self.cpu, self.gpu = cluster["workerGroupSpecs"]
        self.serve = yaml.safe_load(self.spec["serveConfigV2"])
        self.args = self.serve["applications"][0]["args"]
        self.editor = next(each for each in self.serve["applications"][0]["deployments"] if each["name"] == "Editor")

    def find(self, kind: str, name: str) -> Yaml:
        (found,) = [each for each in self.documents if (each["kind"], each["metadata"]["name"]) == (kind, name)]
        return found

    def budget(self, group: str) -> Yaml:
        return self.find("PodDisruptionBudget", f"camera-edit-{group}")["spec"]

    def problems(self) -> list[tuple[str, str]]:
        self.spec["serveConfigV2"] = yaml.safe_dump(self.serve)
        app, settings = serve_app_of(self.service)
        return list(check_manifests(self.documents, app, settings))


@cache
def base() -> list[Yaml]:
    return render(KUBERAY / "base")


@pytest.fixture
def manifests() -> Manifests:
    return Manifests(copy.deepcopy(base()))


def pod(group: Yaml) -> Yaml:
    return group["template"]["spec"]


def set_env(group: Yaml, name: str, value: str) -> None:
    (entry,) = [each for each in pod(group)["containers"][0]["env"] if each["name"] == name]
    entry["value"] = value


def shm_of(group: Yaml) -> Yaml:
    (volume,) = [each for each in pod(group)["volumes"] if each["name"] == "shm"]
    return volume


COMPONENT = "app.kubernetes.io/component"
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
SQLITE = {"kind": "sqlite", "path": "/data/jobs.sqlite3"}
CARD = {"name": "NVIDIA H200", "memory_gb": 141}

FAULTS: list[tuple[str, Callable[[Manifests], object], str, str]] = [
    # The fault, the problem's path, a part of its message.
    (
        "maxUnavailable",
        lambda each: each.budget("gpu").update(maxUnavailable=1, minAvailable=None),
        "PodDisruptionBudget camera-edit-gpu: spec",
        "minAvailable with a number",
    ),
    (
        "minAvailable in percent",
        lambda each: each.budget("cpu").update(minAvailable="50%"),
        "PodDisruptionBudget camera-edit-cpu: spec",
        "minAvailable with a number",
    ),
    (
        "minAvailable of all",
        lambda each: each.budget("gpu").update(minAvailable=2),
        "PodDisruptionBudget camera-edit-gpu: spec.minAvailable",
        "below minReplicas (2)",
    ),
    (
        "minAvailable of all, by an expression",
        lambda each: each.budget("gpu").update(
            minAvailable=2,
            selector={
                "matchExpressions": [
                    {"key": COMPONENT, "operator": "In", "values": ["gpu"]},
                    {"key": COMPONENT, "operator": "NotIn", "values": ["cpu"]},
                    {"key": COMPONENT, "operator": "Exists"},
                    {"key": "other", "operator": "DoesNotExist"},
                ]
            },
        ),
        "PodDisruptionBudget camera-edit-gpu: spec.minAvailable",
        "below minReplicas (2)",
    ),
    (
        "object store above shm",
        lambda each: each.head["rayStartParams"].update({"object-store-memory": str(4 * 2**30)}),
        HEAD,
        "/dev/shm has 3.0 GiB and Ray's object store 4.0 GiB",
    ),
    (
        "object store of Ray's default size",
        lambda each: each.head["rayStartParams"].pop("object-store-memory"),
        HEAD,
        "Ray's object store 4.8 GiB",
    ),
    (
        "shm on disk",
        lambda each: shm_of(each.gpu)["emptyDir"].pop("medium"),
        GPU,
        "/dev/shm has 0.1 GiB",
    ),
    (
        "drain below the longest edit",
        lambda each: set_env(each.gpu, DRAIN, "1799"),
        f"{GPU}: {DRAIN}",
        "at least 1800",
    ),
    (
        "drain below the longest answer",
        lambda each: set_env(each.cpu, DRAIN, "1800"),
        f"{CPU}: {DRAIN}",
        "at least 1860",
    ),
    (
        "grace without preStop",
        lambda each: pod(each.gpu).update(terminationGracePeriodSeconds=1830),
        f"{GPU}.template.spec.terminationGracePeriodSeconds",
        "must exceed preStop and Ray's drain (30 + 1800 s)",
    ),
    (
        "grace by default",
        lambda each: pod(each.cpu).pop("terminationGracePeriodSeconds"),
        f"{CPU}.template.spec.terminationGracePeriodSeconds",
        "must exceed",
    ),
    (
        "head without preStop",
        lambda each: pod(each.head)["containers"][0].pop("lifecycle"),
        f"{HEAD}.template.spec",
        "wait in preStop for its workers' drain (1890 s)",
    ),
    (
        "head without grace",
        lambda each: pod(each.head).pop("terminationGracePeriodSeconds"),
        f"{HEAD}.template.spec",
        "within its terminationGracePeriodSeconds",
    ),
    (
        "first cluster deleted early",
        lambda each: each.spec.update(rayClusterDeletionDelaySeconds=1860),
        "spec.rayClusterDeletionDelaySeconds",
        "must exceed the longest edit (1860 s)",
    ),
    (
        "too few GPUs",
        lambda each: each.gpu.update(maxReplicas=7),
        GROUPS,
        "have 7 GPUs at most, and the deployments use up to 8",
    ),
    (
        "no GPU for a surge",
        lambda each: each.gpu.update(maxReplicas=8),
        GROUPS,
        "max_surge_percent of Editor needs 1 beside 8",
    ),
    (
        "a surge of all",
        lambda each: each.editor.update(max_surge_percent=100),
        GROUPS,
        "max_surge_percent of Editor needs 7 beside 8",
    ),
    (
        "no surge of one editor",
        lambda each: each.editor.update(max_surge_percent=0),
        "spec.serveConfigV2",
        "an update stops it for minutes",
    ),
    (
        "no GPUs for a second cluster",
        lambda each: each.service["metadata"]["annotations"].update({POOL: "10"}),
        "spec.upgradeStrategy",
        "is NewCluster, which needs 2 GPUs beside 9, and the pool has 10",
    ),
    (
        "no GPUs for a second cluster of more replicas than it must have",
        lambda each: each.gpu.update(replicas=3),
        "spec.upgradeStrategy",
        "is NewCluster, which needs 3 GPUs beside 9, and the pool has 11",
    ),
    (
        "a second cluster by default",
        lambda each: (each.spec.pop("upgradeStrategy"), each.service["metadata"]["annotations"].update({POOL: "10"})),
        "spec.upgradeStrategy",
        "is NewCluster",
    ),
    (
        "a pool of unknown size",
        lambda each: each.service["metadata"]["annotations"].pop(POOL),
        f"metadata.annotations.{POOL}",
        "how many GPUs",
    ),
    (
        "no GPUs for a step of an upgrade",
        lambda each: each.spec["upgradeStrategy"].update(
            type="NewClusterWithIncrementalUpgrade", clusterUpgradeOptions={"maxSurgePercent": 25}
        ),
        "spec.upgradeStrategy",
        "needs 3 GPUs beside 9",
    ),
    (
        "jobs in a file",
        lambda each: each.args["jobs"].update(store=SQLITE),
        "spec.serveConfigV2: args.jobs.store",
        "must be redis",
    ),
    (
        "no selector",
        lambda each: pod(each.gpu).pop("nodeSelector"),
        f"{GPU}.template.spec.nodeSelector",
        "must name a GPU by one of nvidia.com/gpu.product",
    ),
    (
        "a smaller GPU",
        lambda each: pod(each.gpu).update(nodeSelector={"cloud.google.com/gke-accelerator": "nvidia-l4"}),
        f"{GPU}.template.spec.nodeSelector",
        "nvidia-l4 has 24 GB, and args.card has 80 GB",
    ),
    (
        "a plan for a larger GPU",
        lambda each: each.args.update(card=CARD),
        f"{GPU}.template.spec.nodeSelector",
        "NVIDIA-H100-80GB-HBM3 has 80 GB, and args.card has 141 GB",
    ),
]


def test_the_base_has_no_problem(manifests: Manifests) -> None:
    assert manifests.problems() == []


@pytest.mark.parametrize(("plant", "at", "message"), [each[1:] for each in FAULTS], ids=[each[0] for each in FAULTS])
def test_planted_fault_is_the_only_problem(
    manifests: Manifests, plant: Callable[[Manifests], object], at: str, message: str
) -> None:
    plant(manifests)
    ((place, text),) = manifests.problems()
    assert place == at
    assert message in text


def test_preemptible_pods_need_no_grace(manifests: Manifests) -> None:
    pod(manifests.gpu)["terminationGracePeriodSeconds"] = 25
    assert len(manifests.problems()) == 1
    manifests.gpu["template"]["metadata"]["annotations"] = {"camera-edit/preemptible": "true"}
    assert manifests.problems() == []


def test_without_a_group_for_cpus_gpu_pods_wait_for_the_ingress(manifests: Manifests) -> None:
    manifests.spec["rayClusterConfig"]["workerGroupSpecs"] = [manifests.gpu]
    assert (f"{CPU}: {DRAIN}", "at least 1860") in [(at, text[8:21]) for at, text in manifests.problems()]


def test_a_fixed_pool_needs_no_second_cluster(manifests: Manifests) -> None:
    manifests.service["metadata"]["annotations"][POOL] = "9"
    manifests.spec["upgradeStrategy"] = {"type": "None"}
    assert manifests.problems() == []


@pytest.mark.parametrize(
    "selector",
    [
        {"matchLabels": {"app": "other"}},
        {"matchExpressions": [{"key": COMPONENT, "operator": "In", "values": ["redis"]}]},
        {"matchExpressions": [{"key": COMPONENT, "operator": "NotIn", "values": ["head", "cpu", "gpu"]}]},
        {"matchExpressions": [{"key": "app", "operator": "Exists"}]},
        {"matchExpressions": [{"key": COMPONENT, "operator": "DoesNotExist"}]},
    ],
)
def test_a_budget_of_other_pods_is_not_judged(manifests: Manifests, selector: Yaml) -> None:
    other = copy.deepcopy(manifests.find("PodDisruptionBudget", "camera-edit-gpu"))
    other["spec"] = {"maxUnavailable": 1, "selector": selector}
    manifests.documents.append(other)
    assert manifests.problems() == []


@pytest.mark.parametrize(
    ("pre_stop", "seconds"),
    [
        ({"exec": {"command": ["bash", "-c", "sleep 1950"]}}, 1950),
        ({"exec": {"command": ["/bin/sh", "-c", "sleep 1950"]}}, 1950),
        ({"exec": {"command": ["sleep", "1950"]}}, 1950),
        ({"sleep": {"seconds": 1950}}, 1950),
        ({"exec": {"command": ["timeout", "1950", "bash", "-c", "until true; do sleep 5; done"]}}, 1950),
        ({"exec": {"command": ["bash", "-c", "until true; do sleep 5; done"]}}, 0),
        ({"httpGet": {"path": "/", "port": 8000}}, 0),
    ],
)
def test_how_long_a_pre_stop_lasts(manifests: Manifests, pre_stop: Yaml, seconds: float) -> None:
    pod(manifests.head)["containers"][0]["lifecycle"]["preStop"] = pre_stop
    assert head_of(manifests.service).pre_stop_s == seconds


def test_check_reports_them_with_the_file(tmp_path: Path, manifests: Manifests) -> None:
    manifests.budget("gpu").update(maxUnavailable=1)
    file = tmp_path / "manifests.yaml"
    file.write_text(yaml.safe_dump_all(manifests.documents), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r": 1 problem\nPodDisruptionBudget camera-edit-gpu: spec: must have minAvailable"
    ):
        check_file(file)


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("NVIDIA-H100-80GB-HBM3", 80),
        ("nvidia-h200-141gb", 141),
        ("nvidia-l4", 24),
        ("l40s", 48),
        ("NVIDIA-A100-SXM4-40GB", 40),
        ("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", 10),
        ("b200", 180),
        ("unheard-of", None),
    ],
)
def test_memory_of_a_card_by_its_label(name: str, gigabytes: float | None) -> None:
    assert memory_gb(name) == gigabytes


@pytest.mark.parametrize(("text", "number"), [("16Gi", 2**34), ("500m", 0.5), ("2", 2), ("1k", 1000), (None, 0)])
def test_quantities(text: str | None, number: float) -> None:
    assert quantity(text) == number
