"""Lints for the manifests of a RayService: rules that neither Kubernetes nor KubeRay checks.

`kubectl kustomize DIR | camera-edit check -` applies them. A RayService without `rayClusterConfig` has no pods.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ray.serve.schema import DeploymentSchema, ServeApplicationSchema

from serve_app.config import AppSettings, SqliteStoreSettings
from serve_app.tools.check.pods import Group, Manifest, dig, groups_of, head_of, is_selected
from serve_app.tools.check.rules import actor_options, least_replicas, most_replicas

POOL = "camera-edit/gpu-pool"
"""Annotation of a RayService: how many GPUs its node pool may have."""

GPU_LABELS = (
    "nvidia.com/gpu.product",
    "cloud.google.com/gke-accelerator",
    "karpenter.k8s.aws/instance-gpu-name",
)
"""Labels of nodes that name their GPU."""

CARD_GB = {
    "b200": 180, "h200": 141, "h100": 80, "a100": 40, "l40s": 48, "l40": 48, "a6000": 48, "a40": 48, "a10": 24,
    "l4": 24, "t4": 16,
}  # fmt: skip
"""Memory of GPUs whose label does not say it."""

Found = Iterator[tuple[str, str]]
"""The path of a problem, and the message."""


@dataclass(frozen=True)
class Cluster:
    """A RayService with its pods, and the application that it runs."""

    service: Manifest
    documents: Sequence[Manifest]
    app: ServeApplicationSchema
    settings: AppSettings

    @property
    def head(self) -> Group:
        return head_of(self.service)

    @property
    def groups(self) -> Sequence[Group]:
        return groups_of(self.service)

    @property
    def upgrade(self) -> Manifest:
        return dig(self.service, "spec", "upgradeStrategy") or {}

    @property
    def deployments(self) -> Mapping[str, DeploymentSchema]:
        return {each.name: each for each in self.app.deployments}

    def longest_s(self, group: Group) -> float:
        """The longest graceful shutdown of the deployments that may run in a group."""
        without_gpu = [each for each in self.groups if not each.num_gpus]
        here = [
            each
            for each in self.app.deployments
            if not without_gpu or bool(actor_options(each).num_gpus) == bool(group.num_gpus)
        ]
        return max((_graceful_s(each) for each in here), default=0.0)

    @property
    def num_gpus(self) -> float:
        """Of all groups, if each has its most pods."""
        return sum(each.most * each.num_gpus for each in self.groups)


def check_manifests(
    documents: Sequence[object], app: ServeApplicationSchema, settings: AppSettings
) -> Iterator[tuple[str, str]]:
    """The problems of the manifests among the documents, by path: of a RayService with a `rayClusterConfig`, and of
    what selects its pods."""
    manifests = [each for each in documents if isinstance(each, dict)]
    for service in manifests:
        if service.get("kind") == "RayService" and dig(service, "spec", "rayClusterConfig") is not None:
            cluster = Cluster(service, manifests, app, settings)
            for rule in (check_budgets, check_memory, check_grace, check_gpus, check_upgrade, check_store, check_cards):
                yield from rule(cluster)


def check_budgets(cluster: Cluster) -> Found:
    """A RayCluster has no scale subresource, so only an integer minAvailable can be computed (kuberay#2662)."""
    for budget in cluster.documents:
        selector = dig(budget, "spec", "selector") or {}
        pods = [each for each in (cluster.head, *cluster.groups) if is_selected(each.labels, selector)]
        if budget.get("kind") != "PodDisruptionBudget" or not pods:
            continue
        at = f"PodDisruptionBudget {dig(budget, 'metadata', 'name')}: spec"
        least, available = sum(each.least for each in pods), dig(budget, "spec", "minAvailable")
        if "maxUnavailable" in budget["spec"] or not isinstance(available, int):
            yield (
                at,
                "must have minAvailable with a number: others cannot be computed for Ray's pods and block all drains",
            )
        elif available >= least:
            yield f"{at}.minAvailable", f"must be below minReplicas ({least}), or it blocks all drains"


def check_memory(cluster: Cluster) -> Found:
    for group in (cluster.head, *cluster.groups):
        if group.shm_bytes < group.object_store_bytes:
            sizes = f"{group.shm_bytes / 2**30:.1f} GiB", f"{group.object_store_bytes / 2**30:.1f} GiB"
            message = "/dev/shm has {} and Ray's object store {}: the rest is on disk; set object-store-memory"
            yield group.at, message.format(*sizes)


def check_grace(cluster: Cluster) -> Found:
    """Pods that stop let their longest edit end, and the head outlives them all."""
    lasting = [each for each in cluster.groups if not each.is_preemptible]
    for group in lasting:
        longest = cluster.longest_s(group)
        if group.drain_s < longest:
            message = f"must be at least {longest:g}, the longest graceful_shutdown_timeout_s of its replicas"
            yield f"{group.at}: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", message
        if group.grace_s <= group.pre_stop_s + group.drain_s:
            message = f"must exceed preStop and Ray's drain ({group.pre_stop_s:g} + {group.drain_s:g} s)"
            yield f"{group.at}.template.spec.terminationGracePeriodSeconds", message
    needed = max((each.pre_stop_s + each.drain_s for each in lasting), default=0.0)
    if not needed <= cluster.head.pre_stop_s < cluster.head.grace_s:
        message = (
            f"must wait in preStop for its workers' drain ({needed:g} s), within its terminationGracePeriodSeconds"
        )
        yield f"{cluster.head.at}.template.spec", message
    delay = dig(cluster.service, "spec", "rayClusterDeletionDelaySeconds") or 60
    longest = max((cluster.longest_s(each) for each in lasting), default=0.0)
    if cluster.upgrade.get("type") != "None" and delay <= longest:
        yield "spec.rayClusterDeletionDelaySeconds", f"must exceed the longest edit ({longest:g} s)"


def check_gpus(cluster: Cluster) -> Found:
    """The groups have GPUs for all replicas and for those that an update of the Serve config starts first."""
    on_gpus = [each for each in cluster.app.deployments if actor_options(each).num_gpus]
    used = sum(most_replicas(each) * (actor_options(each).num_gpus or 0) for each in on_gpus)
    at = "spec.rayClusterConfig.workerGroupSpecs"
    if used > cluster.num_gpus:
        yield at, f"have {cluster.num_gpus:g} GPUs at most, and the deployments use up to {used:g}"
    for each in on_gpus if used <= cluster.num_gpus else ():
        surge = math.ceil(_surge_percent(each) * most_replicas(each) / 100) * (actor_options(each).num_gpus or 0)
        if surge and used + surge > cluster.num_gpus:
            message = (
                f"have {cluster.num_gpus:g} GPUs: max_surge_percent of {each.name} needs {surge:g} beside {used:g}"
            )
            yield at, f"{message}, so that an update waits until the load falls"
    editor = cluster.deployments.get("Editor")
    if editor is not None and not _surge_percent(editor) and least_replicas(editor) < 2:
        message = "max_surge_percent of Editor is 0 and it may have one replica: an update stops it for minutes"
        yield "spec.serveConfigV2", message


def check_upgrade(cluster: Cluster) -> Found:
    """The node pool has GPUs for the second cluster of an upgrade."""
    kind = cluster.upgrade.get("type", "NewCluster")
    pool = dig(cluster.service, "metadata", "annotations", POOL)
    if kind == "None" and pool is None:
        return
    if pool is None:
        yield f"metadata.annotations.{POOL}", f"must say how many GPUs there may be: upgradeStrategy {kind} needs more"
        return
    more = 0.0
    if kind == "NewCluster":
        more = sum(each.first * each.num_gpus for each in cluster.groups)
    elif kind == "NewClusterWithIncrementalUpgrade":
        percent = dig(cluster.upgrade, "clusterUpgradeOptions", "maxSurgePercent")
        more = math.ceil((100 if percent is None else percent) * cluster.num_gpus / 100)
    if cluster.num_gpus + more > float(pool):
        message = f"is {kind}, which needs {more:g} GPUs beside {cluster.num_gpus:g}, and the pool has {pool}"
        yield "spec.upgradeStrategy", f"{message}: the second cluster would stay pending"


def check_store(cluster: Cluster) -> Found:
    if isinstance(cluster.settings.jobs.store, SqliteStoreSettings):
        message = "must be redis: a file is lost with its pod, and another pod cannot read it"
        yield "spec.serveConfigV2: args.jobs.store", message


def check_cards(cluster: Cluster) -> Found:
    """A memory plan for one card must not land on a smaller one."""
    card = cluster.settings.card
    for group in cluster.groups:
        if card is None or not group.num_gpus:
            continue
        names = [value for key, value in group.node_labels if key in GPU_LABELS]
        at = f"{group.at}.template.spec.nodeSelector"
        if not names:
            yield at, f"must name a GPU by one of {', '.join(GPU_LABELS)}: the memory plan is for {card.name}"
        for name in names:
            memory = memory_gb(name)
            if memory is None or memory < card.memory_gb:
                size = "unknown memory" if memory is None else f"{memory:g} GB"
                yield at, f"{name} has {size}, and args.card has {card.memory_gb:g} GB"


def memory_gb(name: str) -> float | None:
    """The memory of a GPU by its name in a node's label, such as `nvidia-h100-80gb`; None if unknown."""
    said = re.findall(r"(\d+)gb", name.lower())
    if said:
        return float(said[-1])  # Of a MIG slice, whose card's memory comes before.
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((float(CARD_GB[word]) for word in words if word in CARD_GB), None)


def _graceful_s(deployment: DeploymentSchema) -> float:
    timeout: object = deployment.graceful_shutdown_timeout_s
    return float(timeout) if isinstance(timeout, int | float) else 20.0  # Serve's default


def _surge_percent(deployment: DeploymentSchema) -> int:
    percent: object = deployment.max_surge_percent
    return percent if isinstance(percent, int) else 0
