"""The KubeRay manifest: valid by its CRD's schema without unknown keys, and consistent with the files beside it."""

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from serve_app.config import AppSettings, RedisStoreSettings, WeightsSource
from serve_app.tools.check import check_file

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "configs" / "kuberay" / "rayservice.yaml"
# The schema of the RayService CRD, too large for this repository.
CRD_SCHEMA = ROOT / "../shared/data/rayservice-v1.schema.json"

Yaml = Any  # A parsed document of any shape.


def load(kind: str) -> Yaml:
    documents = {each["kind"]: each for each in yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))}
    assert set(documents) == {"PersistentVolumeClaim", "PodDisruptionBudget", "RayService"}
    return documents[kind]


@pytest.fixture
def service() -> Yaml:
    return load("RayService")


@pytest.fixture
def worker(service: Yaml) -> Yaml:
    """The pod template of the only worker group."""
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return group["template"]


@pytest.fixture
def head(service: Yaml) -> Yaml:
    return service["spec"]["rayClusterConfig"]["headGroupSpec"]


def sources_of(settings: AppSettings) -> list[WeightsSource]:
    assert settings.rewriter is not None
    assert settings.rewriter.source is not None
    loras = [lora.source for lora in settings.editor.loras]
    return [settings.editor.base, *loras, settings.rewriter.source]


def without_sources(serve_config: str) -> Yaml:
    """The config with the path and revision of each source blanked out, and without the store of jobs."""
    config = yaml.safe_load(serve_config)
    args = config["applications"][0]["args"]
    loras = [lora["source"] for lora in args["editor"]["loras"]]
    for source in (args["editor"]["base"], *loras, args["rewriter"]["source"]):
        assert set(source) == {"path", "revision"}
        source.update(path="", revision="")
    args.pop("jobs", None)
    return config


def test_serve_config_passes_the_check_and_all_weights_are_on_the_volume() -> None:
    (settings,) = check_file(MANIFEST).settings
    paths = [source.path for source in sources_of(settings)]
    assert len(set(paths)) == 4
    assert all(re.fullmatch(r"/weights/[\w.-]+", path) for path in paths)


def test_serve_config_equals_the_cluster_default_but_for_the_sources(service: Yaml) -> None:
    default = (ROOT / "serve_config.yaml").read_text(encoding="utf-8")
    assert without_sources(service["spec"]["serveConfigV2"]) == without_sources(default)


def test_jobs_survive_the_loss_of_a_node(service: Yaml, worker: Yaml) -> None:
    (settings,) = check_file(MANIFEST).settings
    store = settings.jobs.store
    assert isinstance(store, RedisStoreSettings)
    options = service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    # Ray keeps its own state in database 0.
    assert store.url == f"redis://{options['redisAddress']}/1"
    (container,) = worker["spec"]["containers"]
    env = {each["name"]: each for each in container["env"]}
    assert env["CAMERA_EDIT_REDIS_PASSWORD"]["valueFrom"] == options["redisPassword"]["valueFrom"]


def test_init_container_fetches_each_configured_file_from_its_configured_repository(worker: Yaml) -> None:
    (fetch,) = worker["spec"]["initContainers"]
    commands = re.findall(r"^fetch (/.+)$", fetch["args"][0].replace("\\\n", " "), re.MULTILINE)
    fetched = {folder: rest for folder, *rest in (command.split() for command in commands)}
    (mounted,) = check_file(MANIFEST).settings
    (default,) = check_file(ROOT / "serve_config.yaml").settings
    files = [[], *([lora.file] for lora in mounted.editor.loras), []]
    expected = zip(sources_of(mounted), sources_of(default), files, strict=True)
    assert fetched == {folder.path: [hub.revision, hub.path, *file] for folder, hub, file in expected}


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
WORKER = (*CLUSTER, "workerGroupSpecs", 0)


@pytest.mark.parametrize(
    ("parents", "key"),
    [
        (("spec",), "excludeHeadPodFromServeSvc"),
        (CLUSTER, "rayVersion"),
        ((*CLUSTER, "authOptions"), "mode"),
        ((*CLUSTER, "gcsFaultToleranceOptions", "redisPassword", "valueFrom", "secretKeyRef"), "name"),
        ((*CLUSTER, "headGroupSpec"), "rayStartParams"),
        (WORKER, "maxReplicas"),
        ((*WORKER, "template", "spec"), "terminationGracePeriodSeconds"),
        ((*WORKER, "template", "spec", "tolerations", 0), "operator"),
        ((*WORKER, "template", "spec", "containers", 0), "lifecycle"),
        ((*WORKER, "template", "spec", "volumes", 1, "emptyDir"), "sizeLimit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_misspelt_key_does_not_fit(
    crd: Draft202012Validator, service: Yaml, parents: tuple[str | int, ...], key: str
) -> None:
    broken = copy.deepcopy(service)
    place = broken
    for parent in parents:
        place = place[parent]
    place[f"{key}x"] = place.pop(key)
    assert [error for error in crd.iter_errors(broken) if f"'{key}x' was unexpected" in error.message]


def test_value_outside_its_list_does_not_fit(crd: Draft202012Validator, service: Yaml) -> None:
    service["spec"]["rayClusterConfig"]["authOptions"]["mode"] = "tokens"
    assert not crd.is_valid(service)


def test_ray_version_is_that_of_the_image_and_of_the_package(service: Yaml) -> None:
    version = service["spec"]["rayClusterConfig"]["rayVersion"]
    dockerfile = (MANIFEST.parent / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^FROM (\S+)-py311-cu\d+$", dockerfile, re.MULTILINE) == [f"rayproject/ray:{version}"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"ray[serve]=={version}" in project["dependencies"]


def test_all_pods_run_one_image(head: Yaml, worker: Yaml) -> None:
    pods = [head["template"]["spec"], worker["spec"]]
    images = {each["image"] for pod in pods for each in (*pod.get("initContainers", []), *pod["containers"])}
    assert len(images) == 1


def test_head_takes_no_replica_and_no_gpu(service: Yaml, head: Yaml) -> None:
    assert service["spec"]["excludeHeadPodFromServeSvc"] is True
    assert head["rayStartParams"]["num-cpus"] == "0"
    (container,) = head["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in {**container["resources"]["limits"], **container["resources"]["requests"]}


def test_cluster_options(service: Yaml) -> None:
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    redis = cluster["gcsFaultToleranceOptions"]
    assert redis["redisAddress"]
    assert redis["redisPassword"]["valueFrom"]["secretKeyRef"] == {"name": "camera-edit-redis", "key": "password"}


def test_worker_has_its_gpu_port_shared_memory_and_weights(worker: Yaml) -> None:
    (container,) = worker["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert [each["key"] for each in worker["spec"]["tolerations"]] == ["nvidia.com/gpu"]
    port = check_file(MANIFEST).serve.http_options.port
    assert {"name": "serve", "containerPort": port} in container["ports"]
    volumes = {each.pop("name"): each for each in worker["spec"]["volumes"]}
    mounts = {each["mountPath"]: volumes[each["name"]] for each in container["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    claim = load("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert mounts["/weights"] == {"persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}


@pytest.mark.parametrize(
    ("variable", "name"),
    [("CAMERA_EDIT_API_KEYS_FILE", "api-keys"), ("CAMERA_EDIT_OPERATOR_KEYS_FILE", "operator-keys")],
)
def test_worker_mounts_the_keys_where_its_environment_points(worker: Yaml, variable: str, name: str) -> None:
    (container,) = worker["spec"]["containers"]
    file = next(each["value"] for each in container["env"] if each["name"] == variable)
    mount = next(each for each in container["volumeMounts"] if each["name"] == name)
    secret = next(each["secret"] for each in worker["spec"]["volumes"] if each["name"] == name)
    assert file == f"{mount['mountPath']}/keys"
    assert mount["readOnly"] is True
    # Without the key in the Secret there is no file, and the service does not start: the manifest shows the command.
    command = f"kubectl create secret generic {secret['secretName']} --from-file=keys="
    assert command in MANIFEST.read_text(encoding="utf-8")


def test_worker_group_has_room_for_the_least_and_the_most_replicas(service: Yaml) -> None:
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    least = most = 0
    for deployment in yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["deployments"]:
        num_gpus, scaling = deployment["ray_actor_options"]["num_gpus"], deployment.get("autoscaling_config", {})
        least += num_gpus * scaling.get("min_replicas", 1)
        most += num_gpus * scaling.get("max_replicas", 1)
    assert (group["minReplicas"], group["maxReplicas"]) == (least, most)


def test_worker_may_finish_its_longest_edit_before_it_ends(service: Yaml, worker: Yaml) -> None:
    (container,) = worker["spec"]["containers"]
    env = {each["name"]: each.get("value") for each in container["env"]}
    assert env["HF_HUB_OFFLINE"] == "1"
    drain_s = int(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] or 0)
    deployments = {each.name: each for each in check_file(MANIFEST).serve.applications[0].deployments}
    editor_s = deployments["Editor"].graceful_shutdown_timeout_s
    pre_stop_s = int(container["lifecycle"]["preStop"]["exec"]["command"][-1].removeprefix("sleep "))
    assert editor_s <= drain_s
    assert pre_stop_s + drain_s < worker["spec"]["terminationGracePeriodSeconds"]
    assert editor_s < deployments["Ingress"].graceful_shutdown_timeout_s
    assert editor_s < service["spec"]["rayClusterDeletionDelaySeconds"]


def test_disruption_budget_covers_the_workers(worker: Yaml) -> None:
    budget = load("PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"].items() <= worker["metadata"]["labels"].items()
