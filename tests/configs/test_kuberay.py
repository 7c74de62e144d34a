"""configs/kuberay: its base is consistent with the files beside it, and its generated parts with serve_config.yaml."""

import hashlib
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
from ray.util.state.common import NodeState
from ray.util.state.state_cli import format_list_api_output, ray_list

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
    assert all(re.fullmatch(r"/weights/[\w.-]+/[0-9a-f]{12}/[\w.-]+", path) for path in paths)


def test_job_fetches_each_configured_file_from_its_configured_repository(documents: list[Yaml], service: Yaml) -> None:
    lines = find(documents, "ConfigMap", "camera-edit-weights")["data"]["weights.txt"].splitlines()
    _, mounted = serve_app_of(service)
    default = AppSettings.model_validate(load(DEFAULT)["applications"][0]["args"])
    files = [[], *([f"{lora.file}:{lora.sha256}"] for lora in mounted.editor.loras), []]
    expected = zip(sources_of(mounted), sources_of(default), files, strict=True)
    assert lines == [" ".join([folder.path, hub.path, hub.revision or "", *file]) for folder, hub, file in expected]


def test_the_weights_can_be_applied_before_what_reads_them(documents: list[Yaml]) -> None:
    page = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    pattern = r"kubectl delete job (\S+) .*\nkubectl apply -k DIR -l ([^= ]+)=(\w+) .*\nkubectl wait .* job/(\S+)\n"
    ((deleted, label, value, awaited),) = re.findall(pattern, page)
    selected = {each["kind"]: each for each in documents if each["metadata"].get("labels", {}).get(label) == value}
    assert selected.keys() == {"ConfigMap", "Job"}
    assert {deleted, awaited} == {selected["Job"]["metadata"]["name"]}


def generated_pods(change: Callable[[Yaml], object], folder: Path) -> tuple[Yaml, list[str]]:
    """The application of the pods for a changed serve_config.yaml, and the lines of weights.txt."""
    config = load(DEFAULT)
    change(config["applications"][0])
    (folder / "serve_config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    files = generate(folder / "serve_config.yaml", ROOT / "configs")
    service = yaml.safe_load(files["kuberay/base/serve-config.yaml"])
    (app,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    return app, files["kuberay/base/weights.txt"].splitlines()


def test_another_commit_or_owner_has_another_folder(tmp_path: Path) -> None:
    def change(app: Yaml) -> None:
        app["args"]["editor"]["base"]["revision"] = "0123456789abcdef"
        app["args"]["rewriter"]["source"]["path"] = "other/Qwen3-VL-8B-Instruct"

    app, lines = generated_pods(change, tmp_path)
    assert app["args"]["editor"]["base"] == {
        "path": "/weights/Qwen/0123456789ab/Qwen-Image-Edit-2511",
        "revision": None,
    }
    assert app["args"]["rewriter"]["source"]["path"].startswith("/weights/other/")
    assert lines[0] == "/weights/Qwen/0123456789ab/Qwen-Image-Edit-2511 Qwen/Qwen-Image-Edit-2511 0123456789abcdef"


def test_adapters_of_user_config_are_on_the_volume_too(tmp_path: Path) -> None:
    def adapter(name: str, path: str) -> Yaml:
        return {"name": name, "source": {"path": path}, "file": f"{name}.safetensors", "apply": "request"}

    def change(app: Yaml) -> None:
        del app["args"]["editor"]["loras"]
        app["args"]["rewriter"] = None
        app["deployments"] = [each for each in app["deployments"] if each["name"] != "Rewriter"]
        # One object for both, as by an anchor of YAML.
        adapters = {
            "loras": [adapter("ink", "ann/styles"), adapter("oil", "ann/styles"), adapter("own", "/weights/own")]
        }
        for each in app["deployments"]:
            if each["name"] in ("Editor", "Ingress"):
                each["user_config"] = adapters

    app, lines = generated_pods(change, tmp_path)
    for name in ("Editor", "Ingress"):
        (config,) = [each["user_config"] for each in app["deployments"] if each["name"] == name]
        paths = [each["source"]["path"] for each in config["loras"]]
        assert paths == ["/weights/ann/main/styles", "/weights/ann/main/styles", "/weights/own"]
    assert lines[1:] == ["/weights/ann/main/styles ann/styles main ink.safetensors oil.safetensors"]


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


def test_only_folders_of_another_owner_get_a_new_one(documents: list[Yaml], tmp_path: Path) -> None:
    job = find(documents, "Job", "camera-edit-weights")["spec"]["template"]["spec"]
    *shell, script = job["initContainers"][0]["command"]
    (tmp_path / "stat").write_text('#!/bin/bash\n[[ "$3" == /cache ]] && echo 1000:1000 || echo 0:0\n')
    (tmp_path / "chown").write_text('#!/bin/bash\necho "$@"\n')
    for tool in tmp_path.iterdir():
        tool.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([*shell, script], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "1000:1000 /weights\n")


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
    pinned = [*project["project"]["dependencies"], *extras["quantize"], *extras["tracing"]]
    pinned += project["build-system"]["requires"]
    versions = dict(re.sub(r"\[\w+\]", "", each).split("==") for each in pinned)
    assert versions.items() <= locked().items()
    assert len(locked()) > 2 * len(versions)


def test_the_image_has_the_configs_a_numeric_user_and_a_health_check() -> None:
    text = (KUBERAY / "Dockerfile").read_text(encoding="utf-8")
    for line in ("COPY configs ./configs", "USER 1000:1000", "--require-hashes", "/health/ready", "R580"):
        assert line in text
    assert "ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64" in text  # GKE's driver
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


def test_head_stops_when_no_worker_is_left_or_its_time_is_over(head: Yaml, tmp_path: Path) -> None:
    (container,) = head["template"]["spec"]["containers"]
    timeout, _, *command = container["lifecycle"]["preStop"]["exec"]["command"]
    (line,) = re.findall(r"ray list (.*) \|", command[-1])
    ray_list.make_context("list", line.split())
    none = format_list_api_output([], schema=NodeState)  # type: ignore[arg-type]
    # The first calls fail and list a node.
    answers = f'echo >> calls; case $(wc -l < calls) in 1) exit 1;; 2) echo node;; *) echo "{none}";; esac'
    (tmp_path / "ray").write_text(f"#!/bin/bash\n{answers}\n")
    (tmp_path / "sleep").write_text("#!/bin/bash\n")
    for tool in tmp_path.iterdir():
        tool.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run([timeout, "60", *command], cwd=tmp_path, env=env).returncode == 0
    assert len((tmp_path / "calls").read_text().splitlines()) == 3
    (tmp_path / "ray").write_text("#!/bin/bash\nexec /bin/sleep 60\n")
    assert subprocess.run([timeout, "1", *command], cwd=tmp_path, env=env).returncode == 124


def test_a_head_that_hangs_restarts_without_its_wait_for_workers(head: Yaml) -> None:
    (container,) = head["template"]["spec"]["containers"]
    assert container["livenessProbe"]["terminationGracePeriodSeconds"] == 10
    assert container["livenessProbe"]["httpGet"] == {
        "path": "/api/healthz",
        "port": DEFAULT_DASHBOARD_AGENT_LISTEN_PORT,
    }


def test_alerts_expect_the_one_value_that_conditions_of_kuberay_have(documents: list[Yaml]) -> None:
    groups = find(documents, "PrometheusRule", "camera-edit-kubernetes")["spec"]["groups"]
    queries = {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}
    # KubeRay exports a condition's present status alone, as a label, with the value 1.
    of_conditions = [each for each in queries.values() if "kuberay_service_condition_" in each]
    assert all(each.endswith("== 1") for each in of_conditions)
    assert 'condition_ready{name="camera-edit", condition="false"}' in queries["CameraEditServiceNotReady"]


def test_every_pod_of_ray_limits_its_disk(head: Yaml, groups: dict[str, Yaml]) -> None:
    for each in (head, *groups.values()):
        (container,) = each["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["ephemeral-storage"]
