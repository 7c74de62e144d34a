"""configs/kuberay: the base and every overlay render, fit the CRD's schema without unknown keys, and pass the check."""

import copy
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from serve_app.tools.check.manifests import check_manifests
from tests.configs.kustomize import KUBERAY, NAMES, Yaml, containers, render, serve_app_of
from tests.conftest import ROOT

# The schema of the RayService CRD, too large for this repository.
CRD_SCHEMA = ROOT / "../shared/data/rayservice-v1.schema.json"


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def documents(name: str) -> list[Yaml]:
    return render(KUBERAY / name)


@pytest.fixture
def service(documents: list[Yaml]) -> Yaml:
    (found,) = [each for each in documents if each["kind"] == "RayService"]
    return found


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which has kustomize, is not installed")
def test_kustomize_renders_the_same(name: str, documents: list[Yaml]) -> None:
    done = subprocess.run(["kubectl", "kustomize", KUBERAY / name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    by_identity = {(each["kind"], each["metadata"]["name"]): each for each in documents}
    theirs = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(done.stdout)}
    assert theirs == by_identity
    assert len(documents) == len(by_identity)


def test_no_lint_finds_a_problem(documents: list[Yaml], service: Yaml) -> None:
    app, settings = serve_app_of(service)
    assert settings.card is not None
    assert list(check_manifests(documents, app, settings)) == []


def test_all_pods_run_one_image_beside_redis(documents: list[Yaml]) -> None:
    images = {each["image"] for document in documents for each in containers(document)}
    own = {each for each in images if "redis" not in each}
    assert len(own) == 1
    assert own.pop().rpartition(":")[2] == "0.1.0"
    assert all(":" in each for each in images)


def test_each_container_has_limits_and_no_privileges(documents: list[Yaml]) -> None:
    for document in documents:
        for each in containers(document):
            assert each["resources"]["limits"]["memory"], each["name"]
            security = each["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, each["name"]
            assert security["capabilities"]["drop"] == ["ALL"], each["name"]


def test_each_pod_runs_as_a_numeric_user(documents: list[Yaml]) -> None:
    for document in documents:
        for pod in pods(document):
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] > 0
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def pods(document: Yaml) -> list[Yaml]:
    """The pods that a document starts."""
    if document["kind"] == "RayService":
        cluster = document["spec"]["rayClusterConfig"]
        return [each["template"]["spec"] for each in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return [document["spec"]["template"]["spec"]] if "template" in document.get("spec", {}) else []


def test_what_a_pod_mounts_is_there(documents: list[Yaml]) -> None:
    names = {(each["kind"], each["metadata"]["name"]) for each in documents}
    for document in documents:
        claimed = {each["metadata"]["name"] for each in document.get("spec", {}).get("volumeClaimTemplates", [])}
        for pod in pods(document):
            volumes = {each["name"]: each for each in pod.get("volumes", [])}
            for container in (*pod.get("initContainers", []), *pod["containers"]):
                mounted = {each["name"] for each in container.get("volumeMounts", [])}
                assert mounted <= volumes.keys() | claimed
            for volume in volumes.values():
                if "configMap" in volume:
                    assert ("ConfigMap", volume["configMap"]["name"]) in names
                if "persistentVolumeClaim" in volume:
                    assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names


def test_each_budget_and_policy_selects_pods(documents: list[Yaml]) -> None:
    labels = [each["metadata"]["labels"] for document in documents for each in templates(document)]
    selectors = [
        each["spec"]["selector"] for each in documents if each["kind"] in ("PodDisruptionBudget", "PodMonitor")
    ]
    selectors += [each["spec"]["podSelector"] for each in documents if each["kind"] == "NetworkPolicy"]
    assert len(selectors) >= 10
    for selector in selectors:
        assert any(selects(selector, each) for each in labels), selector


def templates(document: Yaml) -> list[Yaml]:
    if document["kind"] == "RayService":
        cluster = document["spec"]["rayClusterConfig"]
        return [each["template"] for each in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return [document["spec"]["template"]] if "template" in document.get("spec", {}) else []


def selects(selector: Yaml, labels: dict[str, str]) -> bool:
    within = all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))
    return within and selector.get("matchLabels", {}).items() <= labels.items()


def test_nothing_but_what_policies_list_reaches_rays_ports(documents: list[Yaml]) -> None:
    policies = [each for each in documents if each["kind"] == "NetworkPolicy"]
    ray_pods = [template["metadata"]["labels"] for each in documents for template in templates(each)]
    for labels in ray_pods:
        of_pod = [each["spec"] for each in policies if selects(each["spec"]["podSelector"], labels)]
        if labels["app.kubernetes.io/component"] in ("head", "cpu", "gpu"):
            rules = [rule for each in of_pod for rule in each.get("ingress", [])]
            assert rules
            assert all(rule["from"] for rule in rules)
            open_to_all = [rule for rule in rules if not rule.get("ports")]
            assert [rule["from"] for rule in open_to_all] == [
                [{"podSelector": each["podSelector"]} for each in rule["from"]] for rule in open_to_all
            ]


def test_tls_ends_before_the_service_and_large_bodies_pass(name: str, documents: list[Yaml], service: Yaml) -> None:
    _, settings = serve_app_of(service)
    kinds = {each["kind"]: each for each in documents}
    if name == "incremental":
        assert not kinds.keys() & {"Gateway", "HTTPRoute", "ClientSettingsPolicy"}
        return
    (listener,) = kinds["Gateway"]["spec"]["listeners"]
    assert (listener["port"], listener["protocol"]) == (443, "HTTPS")
    (rule,) = kinds["HTTPRoute"]["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": "camera-edit-serve-svc", "port": 8000}]
    # The other load balancers have no limit of bodies.
    size = kinds["ClientSettingsPolicy"]["spec"]["body"]["maxSize"] if "ClientSettingsPolicy" in kinds else "inf"
    assert float(size.rstrip("m")) * 2**20 > settings.limits.max_body_bytes
    assert timeout_s(kinds) > settings.limits.request_timeout_s


def timeout_s(kinds: dict[str, Yaml]) -> int:
    """How long the load balancer waits for an answer."""
    if "ProxySettingsPolicy" in kinds:
        return int(kinds["ProxySettingsPolicy"]["spec"]["timeout"]["read"].rstrip("s"))
    if "GCPBackendPolicy" in kinds:
        return int(kinds["GCPBackendPolicy"]["spec"]["default"]["timeoutSec"])
    (attribute,) = kinds["LoadBalancerConfiguration"]["spec"]["loadBalancerAttributes"]
    assert attribute["key"] == "idle_timeout.timeout_seconds"
    return int(attribute["value"])


def test_each_redis_has_the_memory_and_the_disk_of_the_sizing_rule(documents: list[Yaml], service: Yaml) -> None:
    """maxmemory is a quarter more than what the store may hold; the pod has half of it more, the disk twice as much."""
    gib = 2**30
    redis = {each["metadata"]["name"]: each["spec"] for each in documents if each["kind"] == "StatefulSet"}
    assert redis.keys() == {"camera-edit-gcs-redis", "camera-edit-jobs-redis"}
    for spec in redis.values():
        (container, _) = spec["template"]["spec"]["containers"]
        options = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
        assert (options["--appendonly"], options["--maxmemory-policy"]) == ("yes", "noeviction")
        maxmemory = int(options["--maxmemory"].removesuffix("gb")) * gib
        assert int(container["resources"]["limits"]["memory"].removesuffix("Gi")) * gib >= 1.5 * maxmemory
        (claim,) = spec["volumeClaimTemplates"]
        assert int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) * gib >= 2 * maxmemory
    _, settings = serve_app_of(service)
    args = redis["camera-edit-jobs-redis"]["template"]["spec"]["containers"][0]["args"]
    assert "16gb" in args
    assert 1.25 * settings.jobs.max_store_bytes <= 16 * gib


def strict(schema: Yaml) -> Yaml:
    """A copy in which an object with known properties has no others, unless the schema itself opens it."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    # A property may itself be called `properties`; only a schema also has a type.
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict) and not is_open:
        closed["additionalProperties"] = False
    return closed


@pytest.fixture(scope="module")
def crd() -> Draft202012Validator:
    if not CRD_SCHEMA.exists():
        pytest.skip(f"the schema of the RayService CRD is not at {CRD_SCHEMA}")
    return Draft202012Validator(strict(json.loads(CRD_SCHEMA.read_text(encoding="utf-8"))["openAPIV3Schema"]))


def test_strict_closes_only_objects_that_the_schema_does_not_open() -> None:
    closed: Yaml = {"type": "object", "properties": {"a": {}}}
    free: Yaml = {"type": "object", "properties": {"a": {}}, "x-kubernetes-preserve-unknown-fields": True}
    mapping: Yaml = {"type": "object", "additionalProperties": closed}
    assert strict(free) == free
    assert strict(mapping) == {**mapping, "additionalProperties": {**closed, "additionalProperties": False}}


def test_manifest_fits_the_strict_schema(crd: Draft202012Validator, service: Yaml) -> None:
    assert [f"{error.json_path}: {error.message}" for error in crd.iter_errors(service)] == []


CLUSTER = ("spec", "rayClusterConfig")
WORKER = (*CLUSTER, "workerGroupSpecs", 1)


@pytest.mark.parametrize(
    ("parents", "key"),
    [
        (("spec",), "excludeHeadPodFromServeSvc"),
        (("spec", "upgradeStrategy"), "type"),
        (CLUSTER, "rayVersion"),
        ((*CLUSTER, "authOptions"), "mode"),
        ((*CLUSTER, "gcsFaultToleranceOptions", "redisPassword", "valueFrom", "secretKeyRef"), "name"),
        ((*CLUSTER, "headGroupSpec"), "rayStartParams"),
        (WORKER, "maxReplicas"),
        ((*WORKER, "template", "spec"), "terminationGracePeriodSeconds"),
        ((*WORKER, "template", "spec", "tolerations", 0), "operator"),
        ((*WORKER, "template", "spec", "containers", 0), "lifecycle"),
        ((*WORKER, "template", "spec", "volumes", 3, "emptyDir"), "sizeLimit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_misspelt_key_does_not_fit(crd: Draft202012Validator, parents: tuple[str | int, ...], key: str) -> None:
    (broken,) = [copy.deepcopy(each) for each in render(KUBERAY / "base") if each["kind"] == "RayService"]
    place = broken
    for parent in parents:
        place = place[parent]
    place[f"{key}x"] = place.pop(key)
    assert [error for error in crd.iter_errors(broken) if f"'{key}x' was unexpected" in error.message]


def test_value_outside_its_list_does_not_fit(crd: Draft202012Validator, service: Yaml) -> None:
    service["spec"]["rayClusterConfig"]["authOptions"]["mode"] = "tokens"
    assert not crd.is_valid(service)


def test_what_kustomize_has_and_the_renderer_lacks_is_an_error(tmp_path: Path) -> None:
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({**head, "resources": [], "namePrefix": "x-"}))
    with pytest.raises(NotImplementedError, match="namePrefix"):
        render(tmp_path)
