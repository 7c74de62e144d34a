"""The pods of a RayService's manifests, as far as the lints read them."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Manifest = Mapping[str, Any]
"""A parsed document of Kubernetes. The API server validates its shape; the lints read what is there."""

GPU = "nvidia.com/gpu"
PREEMPTIBLE = "camera-edit/preemptible"
"""Annotation of a pod template whose nodes may be taken away before an edit has ended."""

DEFAULT_GRACE_S = 30.0  # Kubernetes' and Ray's
DEFAULT_SHM_BYTES = 64 * 2**20
OBJECT_STORE_SHARE = 0.3
"""Of a pod's memory: Ray's default size of its object store."""

_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "m": 1e-3}


@dataclass(frozen=True)
class Group:
    """The head of a RayCluster, or one group of its workers.

    Attributes:
        at: the path of its entry.
        least, most: numbers of pods.
    """

    at: str
    name: str
    entry: Manifest
    least: int = 1
    most: int = 1

    @property
    def template(self) -> Manifest:
        template: Manifest = self.entry.get("template") or {}
        return template

    @cached_property
    def pod(self) -> Manifest:
        return self.template.get("spec") or {}

    @cached_property
    def container(self) -> Manifest:
        """Ray's own, which is the first."""
        container: Manifest = (self.pod.get("containers") or [{}])[0]
        return container

    @property
    def labels(self) -> Manifest:
        return dig(self.template, "metadata", "labels") or {}

    @property
    def is_preemptible(self) -> bool:
        return bool(dig(self.template, "metadata", "annotations", PREEMPTIBLE) == "true")

    @property
    def first(self) -> int:
        """How many pods a new cluster starts."""
        return max(self.least, int(self.entry.get("replicas") or 0))

    @property
    def num_gpus(self) -> float:
        """Of one pod."""
        return quantity(dig(self.container, "resources", "limits", GPU))

    @property
    def grace_s(self) -> float:
        return float(self.pod.get("terminationGracePeriodSeconds", DEFAULT_GRACE_S))

    @property
    def pre_stop_s(self) -> float:
        """The longest time of preStop: `sleep` or `timeout` with its seconds, with a shell or without; otherwise 0."""
        pre_stop = dig(self.container, "lifecycle", "preStop")
        seconds = dig(pre_stop, "sleep", "seconds")
        if seconds is not None:
            return float(seconds)
        command = " ".join(map(str, dig(pre_stop, "exec", "command") or ()))
        found = re.match(r"(?:\S*sh -\w*c )?(?:sleep (\d+)$|timeout (\d+) )", command)
        return 0.0 if found is None else float(found[1] or found[2])

    @property
    def drain_s(self) -> float:
        """How long Ray lets replicas finish after SIGTERM."""
        env = {each.get("name"): each.get("value") for each in self.container.get("env") or ()}
        return float(env.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S") or DEFAULT_GRACE_S)

    @property
    def object_store_bytes(self) -> float:
        given = dig(self.entry, "rayStartParams", "object-store-memory")
        if given is not None:
            return float(given)
        return OBJECT_STORE_SHARE * quantity(dig(self.container, "resources", "limits", "memory"))

    @property
    def shm_bytes(self) -> float:
        """The size of /dev/shm."""
        mounts = {each.get("mountPath"): each.get("name") for each in self.container.get("volumeMounts") or ()}
        volumes = {each.get("name"): each for each in self.pod.get("volumes") or ()}
        shm = dig(volumes, mounts.get("/dev/shm"), "emptyDir")
        if shm is None or shm.get("medium") != "Memory":
            return DEFAULT_SHM_BYTES
        limit = shm.get("sizeLimit") or dig(self.container, "resources", "limits", "memory")
        return math.inf if limit is None else quantity(limit)

    @property
    def node_labels(self) -> Iterator[tuple[str, str]]:
        """The labels, each with a value, that the pods' nodes must have."""
        yield from (self.pod.get("nodeSelector") or {}).items()
        required = ("nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
        for term in dig(self.pod, "affinity", *required) or ():
            for each in term.get("matchExpressions") or ():
                if each.get("operator") == "In":
                    yield from ((each["key"], value) for value in each.get("values") or ())


def head_of(service: Manifest) -> Group:
    entry = dig(service, "spec", "rayClusterConfig", "headGroupSpec") or {}
    return Group("spec.rayClusterConfig.headGroupSpec", "head", entry)


def groups_of(service: Manifest) -> Sequence[Group]:
    """The groups of workers."""
    at = "spec.rayClusterConfig.workerGroupSpecs"
    entries = dig(service, "spec", "rayClusterConfig", "workerGroupSpecs") or ()
    return [
        Group(
            f"{at}[{index}]", str(each.get("groupName")), each, each.get("minReplicas", 0), each.get("maxReplicas", 0)
        )
        for index, each in enumerate(entries)
    ]


def is_selected(labels: Manifest, selector: Manifest) -> bool:
    """Whether a label selector of Kubernetes selects pods with these labels."""
    exact, rules = selector.get("matchLabels") or {}, selector.get("matchExpressions") or ()
    return exact.items() <= labels.items() and all(_fits(labels, each) for each in rules)


def _fits(labels: Manifest, rule: Manifest) -> bool:
    operator: str = rule["operator"]
    if operator in ("Exists", "DoesNotExist"):
        return (rule["key"] in labels) == (operator == "Exists")
    return (labels.get(rule["key"]) in (rule.get("values") or ())) == (operator == "In")


def dig(value: Any, *keys: object) -> Any:
    """The value below a path of keys; None where one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def quantity(value: object) -> float:
    """A quantity of Kubernetes, such as 16Gi or 500m, as a number; 0 for none."""
    text = "0" if value is None else str(value)
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    return float(text.removesuffix(unit)) * _UNITS.get(unit, 1)
