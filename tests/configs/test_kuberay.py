"""configs/kuberay: its base is consistent with the files beside it, and its generated parts with serve_config.yaml."""

import hashlib
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from serve_app.config import AppSettings, RedisStoreSettings, WeightsSource
from serve_app.tools.check import check_file
from serve_app.tools.manifests import generate, write_manifests
from tests.configs.kustomize import KUBERAY, Yaml, load, render, serve_app_of
from tests.conftest import ROOT

DEFAULT = ROOT / "serve_config.yaml"


@pytest.fixture
def documents() -> list[Yaml]:
    return render(KUBERAY / "base")


@pytest.fixture
def service(documents: list[Yaml]) -> Yaml:
    return find(documents, "RayService", "camera-edit")


@pytest.fixture
def head(service: Yaml) -> Yaml:
    return service["spec"]["rayClusterConfig"]["headGroupSpec"]


@pytest.fixture
def groups(service: Yaml) -> dict[str, Yaml]:
    """The groups of workers, by name."""
    return {each["groupName"]: each for each in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]}


def find(documents: list[Yaml], kind: str, name: str) -> Yaml:
    (found,) = [each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def environment(container: Yaml) -> dict[str, Yaml]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


# What is generated.


def test_the_generated_files_match_their_sources() -> None:
    generated = generate(DEFAULT, ROOT / "configs")
    texts = {name: (ROOT / "configs" / name).read_text(encoding="utf-8") for name in generated}
    assert texts == generated, "run: camera-edit generate serve_config.yaml"


def test_the_command_writes_them(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for path in write_manifests(DEFAULT, tmp_path / "configs"):
        original = ROOT / path.relative_to(tmp_path)
        assert path.read_text(encoding="utf-8") == original.read_text(encoding="utf-8")
        path.unlink()
    assert len(write_manifests(DEFAULT, tmp_path / "configs")) == 5


def sources_of(settings: AppSettings) -> list[WeightsSource]:
    assert settings.rewriter is not None
    assert settings.rewriter.source is not None
    loras = [lora.source for lora in settings.editor.loras]
    return [settings.editor.base, *loras, settings.rewriter.source]


def without_differences(serve_config: str) -> Yaml:
    """The config without what pods need otherwise: paths of the weights, the store, groups, and the update's surge."""
    config = yaml.safe_load(serve_config)
    app = config["applications"][0]
    args = app["args"]
    for source in (
        args["editor"]["base"],
        *(each["source"] for each in args["editor"]["loras"]),
        args["rewriter"]["source"],
    ):
        assert set(source) == {"path", "revision"}
        source.update(path="", revision="")
    for key in ("store", "max_store_bytes", "max_store_bytes_per_key"):
        args["jobs"].pop(key, None)
    for deployment in app["deployments"]:
        deployment["ray_actor_options"].pop("label_selector", None)
        deployment.pop("max_surge_percent", None)
    return config


def test_serve_config_equals_the_cluster_default_but_for_what_pods_need(service: Yaml) -> None:
    default = DEFAULT.read_text(encoding="utf-8")
    assert without_differences(service["spec"]["serveConfigV2"]) == without_differences(default)


def test_serve_config_passes_the_check_and_all_weights_are_on_the_volume() -> None:
    (settings,) = check_file(KUBERAY / "base" / "serve-config.yaml").settings
    paths = [source.path for source in sources_of(settings)]
    assert len(set(paths)) == 4
    assert all(re.fullmatch(r"/weights/[\w.-]+", path) for path in paths)


def test_job_fetches_each_configured_file_from_its_configured_repository(documents: list[Yaml], service: Yaml) -> None:
    lines = find(documents, "ConfigMap", "camera-edit-weights")["data"]["weights.txt"].splitlines()
    _, mounted = serve_app_of(service)
    default = AppSettings.model_validate(load(DEFAULT)["applications"][0]["args"])
    files = [[], *([f"{lora.file}:{lora.sha256}"] for lora in mounted.editor.loras), []]
    expected = zip(sources_of(mounted), sources_of(default), files, strict=True)
    assert lines == [" ".join([folder.path, hub.path, hub.revision or "", *file]) for folder, hub, file in expected]


def test_fixed_overlay_keeps_all_but_one_editor_during_an_update() -> None:
    service = find(render(KUBERAY / "8gpu-fixed"), "RayService", "camera-edit")
    deployments = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["deployments"]
    editor = next(each for each in deployments if each["name"] == "Editor")
    assert (editor["num_replicas"], editor["max_surge_percent"]) == (7, 0)
    assert max(int(editor["rolling_update_percentage"] * editor["num_replicas"]), 1) == 1
    used = sum(each.get("num_replicas", 1) * each["ray_actor_options"]["num_gpus"] for each in deployments)
    gpu = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]
    assert {gpu["replicas"], gpu["minReplicas"], gpu["maxReplicas"], used} == {8}
    assert service["spec"]["upgradeStrategy"] == {"type": "None"}


# The scripts of the pods, with a client of the hub that writes files instead of downloading them.

HF = """#!/bin/bash
echo "$@" >> "$HF_CALLS"
if [[ "$1" == cache ]]; then exit "${HF_VERIFY:-0}"; fi
while [[ "$1" != --local-dir ]]; do shift; done
mkdir -p "$2"
echo weights > "$2/lora.safetensors"
"""
SHA256 = hashlib.sha256(b"weights\n").hexdigest()


class Scripts:
    """The scripts of the weights job and of the pods that wait for it, in a folder."""

    def __init__(self, folder: Path, documents: list[Yaml], checksum: str = SHA256) -> None:
        self.folder, self.calls = folder, folder / "calls"
        listed = folder / "weights.txt"
        base, lora = folder / "base", folder / "lora"
        listed.write_text(f"{base} a/base 1234\n{lora} a/lora 5678 lora.safetensors:{checksum}\n")
        tools = folder / "bin"
        tools.mkdir()
        (tools / "hf").write_text(HF)
        (tools / "sleep").write_text("#!/bin/bash\nexit 7\n")  # ends the script, which would wait
        for tool in tools.iterdir():
            tool.chmod(0o755)
        job = find(documents, "Job", "camera-edit-weights")["spec"]["template"]["spec"]["containers"][0]
        cluster = find(documents, "RayService", "camera-edit")["spec"]["rayClusterConfig"]
        pod = cluster["workerGroupSpecs"][1]["template"]["spec"]["initContainers"][0]
        self._job, self._wait = (self._command(each, listed) for each in (job, pod))

    @staticmethod
    def _command(container: Yaml, listed: Path) -> list[str]:
        (script,) = container["args"]
        assert "/etc/camera-edit/weights.txt" in script
        return [*container["command"], script.replace("/etc/camera-edit/weights.txt", str(listed))]

    def fetch(self, verify: int = 0) -> int:
        return self._run(self._job, verify)

    def wait(self) -> int:
        return self._run(self._wait)

    def _run(self, command: list[str], verify: int = 0) -> int:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        env = {"PATH": path, "HF_CALLS": str(self.calls), "HF_VERIFY": str(verify)}
        return subprocess.run(command, env=env, capture_output=True, timeout=60).returncode


def test_job_downloads_and_verifies_each_folder_once(documents: list[Yaml], tmp_path: Path) -> None:
    scripts = Scripts(tmp_path, documents)
    assert scripts.wait() == 7
    assert scripts.fetch() == 0
    assert scripts.calls.read_text().splitlines() == [
        f"download a/base --revision 1234 --local-dir {tmp_path}/base",
        f"cache verify a/base --revision 1234 --local-dir {tmp_path}/base",
        f"download a/lora lora.safetensors --revision 5678 --local-dir {tmp_path}/lora",
        f"cache verify a/lora --revision 5678 --local-dir {tmp_path}/lora",
    ]
    assert scripts.wait() == 0
    assert scripts.fetch() == 0
    assert len(scripts.calls.read_text().splitlines()) == 4


def test_weights_with_another_checksum_are_not_served(documents: list[Yaml], tmp_path: Path) -> None:
    scripts = Scripts(tmp_path, documents, checksum="0" * 64)
    assert scripts.fetch() != 0
    assert scripts.wait() == 7


def test_weights_that_the_hub_does_not_confirm_are_not_served(documents: list[Yaml], tmp_path: Path) -> None:
    scripts = Scripts(tmp_path, documents)
    assert scripts.fetch(verify=1) != 0
    assert scripts.wait() == 7


# The image.


def test_ray_version_is_that_of_the_image_and_of_the_package(service: Yaml) -> None:
    version = service["spec"]["rayClusterConfig"]["rayVersion"]
    assert locked()["ray"] == version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"ray[serve]=={version}" in project["dependencies"]


def locked() -> dict[str, str]:
    """The versions of requirements.lock, each of which has a hash."""
    lines = (KUBERAY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    rows = [re.fullmatch(r"([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", each) for each in lines if each[0] != "#"]
    return {row[1]: row[2] for row in rows if row is not None} if all(rows) else {}


def test_the_lock_has_what_the_package_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    pinned = [*project["project"]["dependencies"], *extras["quantize"], *project["build-system"]["requires"]]
    versions = dict(re.sub(r"\[\w+\]", "", each).split("==") for each in pinned)
    assert versions.items() <= locked().items()
    assert len(locked()) > 2 * len(versions)


def test_the_image_has_the_configs_a_numeric_user_and_a_health_check() -> None:
    text = (KUBERAY / "Dockerfile").read_text(encoding="utf-8")
    for line in ("COPY configs ./configs", "USER 1000:1000", "--require-hashes", "/health/ready", "R580"):
        assert line in text
    # torch brings the CUDA version that the driver must support.
    cuda = {name: version for name, version in locked().items() if name == "nvidia-cuda-runtime"}
    assert f'NVIDIA_REQUIRE_CUDA="cuda>={cuda["nvidia-cuda-runtime"].rpartition(".")[0]}"' in text


# Pods.


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
    assert redis["redisAddress"] == "camera-edit-gcs-redis:6379"
    assert redis["redisPassword"]["valueFrom"]["secretKeyRef"] == {"name": "camera-edit-redis", "key": "password"}


def test_jobs_survive_the_loss_of_a_node_apart_from_rays_state(service: Yaml, groups: dict[str, Yaml]) -> None:
    _, settings = serve_app_of(service)
    assert isinstance(settings.jobs.store, RedisStoreSettings)
    assert settings.jobs.store.url == "redis://camera-edit-jobs-redis:6379/0"
    (container,) = groups["cpu"]["template"]["spec"]["containers"]
    options = service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert environment(container)["CAMERA_EDIT_REDIS_PASSWORD"] == options["redisPassword"]["valueFrom"]


def test_deployments_without_a_gpu_run_in_the_group_that_has_none(service: Yaml, groups: dict[str, Yaml]) -> None:
    num_cpus = int(groups["cpu"]["rayStartParams"]["num-cpus"])
    least = most = 0
    for each in yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["deployments"]:
        options, scaling = each["ray_actor_options"], each.get("autoscaling_config", {})
        assert options.get("label_selector") == (None if options["num_gpus"] else groups["cpu"]["labels"])
        if not options["num_gpus"]:
            least += options["num_cpus"] * scaling.get("min_replicas", 1)
            most += options["num_cpus"] * scaling.get("max_replicas", 1)
    assert least <= num_cpus * groups["cpu"]["minReplicas"]
    assert most <= num_cpus * groups["cpu"]["maxReplicas"]
    assert groups["cpu"]["labels"] != groups["gpu"]["labels"]


def test_gpu_pod_has_its_gpu_port_caches_and_weights(documents: list[Yaml], groups: dict[str, Yaml]) -> None:
    pod = groups["gpu"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert [each["key"] for each in pod["tolerations"]] == ["nvidia.com/gpu"]
    assert {"name": "serve", "containerPort": 8000} in container["ports"]
    volumes = {each.pop("name"): each for each in pod["volumes"]}
    mounts = {each["mountPath"]: volumes[each["name"]] for each in container["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    for path, name in (("/weights", "camera-edit-weights"), ("/cache", "camera-edit-compile-cache")):
        assert mounts[path] == {"persistentVolumeClaim": {"claimName": name}}
        claim = find(documents, "PersistentVolumeClaim", name)
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    env = environment(container)
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["TORCHINDUCTOR_CACHE_DIR"].startswith("/cache/")


@pytest.mark.parametrize(
    ("variable", "name"),
    [("CAMERA_EDIT_API_KEYS_FILE", "api-keys"), ("CAMERA_EDIT_OPERATOR_KEYS_FILE", "operator-keys")],
)
def test_ingress_pods_mount_the_keys_where_their_environment_points(
    groups: dict[str, Yaml], variable: str, name: str
) -> None:
    pod = groups["cpu"]["template"]["spec"]
    (container,) = pod["containers"]
    mount = next(each for each in container["volumeMounts"] if each["name"] == name)
    secret = next(each["secret"] for each in pod["volumes"] if each["name"] == name)
    assert environment(container)[variable] == f"{mount['mountPath']}/keys"
    assert mount["readOnly"] is True
    # Without the key in the Secret there is no file, and the service does not start: the page shows the command.
    command = f"kubectl create secret generic {secret['secretName']} --from-file=keys="
    assert command in (ROOT / "configs" / "README.md").read_text(encoding="utf-8")


def test_nothing_but_gpu_pods_takes_a_gpu_node(documents: list[Yaml], head: Yaml, groups: dict[str, Yaml]) -> None:
    job = find(documents, "Job", "camera-edit-weights")["spec"]["template"]["spec"]
    for pod in (head["template"]["spec"], groups["cpu"]["template"]["spec"], job):
        assert "tolerations" not in pod
        (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        absent = {each["key"] for each in term["matchExpressions"] if each["operator"] == "DoesNotExist"}
        assert absent >= {"nvidia.com/gpu.present", "cloud.google.com/gke-accelerator"}


def test_every_pod_of_ray_limits_its_disk(head: Yaml, groups: dict[str, Yaml]) -> None:
    for each in (head, *groups.values()):
        (container,) = each["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["ephemeral-storage"]
