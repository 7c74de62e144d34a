"""Configuration files: the shipped ones pass; each misspelling and each broken rule is reported with its path."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from serve_app.errors import ConfigError
from serve_app.tools.check import check_file, describe
from serve_app.tools.check.file import MIDDLEWARE_VARIABLE, MIDDLEWARE_WARNING, SQLITE_WARNING
from serve_app.tools.check.rules import DEPLOYMENT_NAMES
from serve_app.tools.check.schema import Problems, find_unknown_keys

ROOT = Path(__file__).parents[3]
GPU_FILE = ROOT / "serve_config.yaml"
CPU_FILE = ROOT / "configs" / "tiny-cpu.yaml"
SHIPPED = [
    GPU_FILE,
    *sorted((ROOT / "configs").glob("*.yaml")),
    ROOT / "configs" / "kuberay" / "base" / "serve-config.yaml",
]
APP = "applications[0]"
EDITOR = f"{APP}.deployments[2]"

Edit = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Edit:
    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems_of(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_file(path)
    head, *lines = str(caught.value).splitlines()
    assert head.startswith(f"{path}: ")
    return lines


def replaced(old: str, new: str, source: Path = GPU_FILE) -> str:
    """The file's text with the last `old` before the end of the editor's entry replaced; `old` must be in it."""
    editor, jobs, rest = source.read_text(encoding="utf-8").partition("      - name: Jobs")
    head, found, tail = editor.rpartition(old)
    assert found, f"{source} holds no {old!r}"
    return head + new + tail + jobs + rest


def with_runtime_env(value: str) -> str:
    """The file's text with a runtime_env for the editor."""
    return replaced("num_gpus: 1", f"num_gpus: 1\n          runtime_env: {value}")


def wrapped(serve_config: str) -> str:
    service = {"kind": "RayService", "spec": {"serveConfigV2": serve_config}}
    return yaml.safe_dump_all([{"kind": "PersistentVolumeClaim"}, service])


@pytest.mark.parametrize("path", [GPU_FILE, CPU_FILE], ids=lambda path: path.name)
def test_shipped_file_passes_and_names_all_deployments(path: Path) -> None:
    file = check_file(path)
    assert tuple(each.name for each in file.serve.applications[0].deployments) == DEPLOYMENT_NAMES
    assert [lora.name for lora in file.settings[0].editor.fused_loras] == ["lightning", "angles"]
    assert [lora.name for lora in file.settings[0].editor.unfused_loras] == ["cyanotype"] * (path == CPU_FILE)


def test_shipped_cpu_file_fits_two_cores_beside_serve() -> None:
    deployments = check_file(CPU_FILE).serve.applications[0].deployments
    assert sum(each.ray_actor_options.num_cpus or 0 for each in deployments) <= 1.0


MISSPELLINGS = [
    ("proxy_location:", "proxy_locaton:", "proxy_locaton", "proxy_location"),
    ("\n  host:", "\n  hosts:", "http_options.hosts", "host"),
    ("  encoding:", "  encodings:", "logging_config.encodings", "encoding"),
    ("route_prefix:", "route_prefx:", f"{APP}.route_prefx", "route_prefix"),
    ("health_check_period_s:", "health_check_periods:", f"{EDITOR}.health_check_periods", "health_check_period_s"),
    ("num_gpus:", "num_gpu:", f"{EDITOR}.ray_actor_options.num_gpu", "num_gpus"),
    ("max_replicas:", "max_replica:", f"{EDITOR}.autoscaling_config.max_replica", "max_replicas"),
    ("status_code:", "status:", f"{APP}.deployments[0].backpressure_config.status", "status_code"),
    ("rewriter:", "rewritter:", f"{APP}.args.rewritter", "rewriter"),
    ("dtype:", "dtyp:", f"{APP}.args.rewriter.dtyp", "dtype"),
    ("weight:", "wieght:", f"{APP}.args.editor.loras[1].wieght", "weight"),
    ("revision:", "revison:", f"{APP}.args.rewriter.source.revison", "revision"),
]


@pytest.mark.parametrize(("key", "misspelt", "at", "meant"), MISSPELLINGS, ids=[each[2] for each in MISSPELLINGS])
def test_misspelt_key_is_refused_with_a_suggestion(write: Edit, key: str, misspelt: str, at: str, meant: str) -> None:
    lines = problems_of(write(replaced(key, misspelt)))
    assert f"{at}: unknown key (did you mean '{meant}'?)" in lines


def test_key_unlike_any_other_is_refused_with_those_that_there_are(write: Edit) -> None:
    lines = problems_of(write(replaced("  encoding: JSON", "  encoding: JSON\n  zzz: 1")))
    assert len(lines) == 1
    assert re.fullmatch(r"logging_config\.zzz: unknown key \(known: encoding, .*\)", lines[0])


def test_runtime_env_is_left_free(write: Edit) -> None:
    assert check_file(write(with_runtime_env("{env_vars: {A: b}, any: thing}")))


WOODCUT = "{name: woodcut, source: {path: x}, file: f, apply: request}"


def with_user_config(**by_deployment: str) -> str:
    text = GPU_FILE.read_text()
    for name, config in by_deployment.items():
        text = text.replace(f"      - name: {name}\n", f"      - name: {name}\n        user_config: {config}\n")
    return text


def test_adapters_may_stand_in_user_config(write: Edit) -> None:
    path = write(with_user_config(Ingress=f"&adapters {{loras: [{WOODCUT}]}}", Editor="*adapters"))
    file = check_file(path)
    assert [lora.name for lora in file.settings[0].editor.loras] == ["lightning", "angles", "woodcut"]
    assert "adapters that are not fused" in {row.name for plan in file.plans[0] for row in plan.rows}
    text = describe(path)
    assert "adapter woodcut: x (f) at 1, apply: request" in text
    assert "a change of the adapters in the user_config of Editor and Ingress needs no restart" in text


USER_CONFIGS = {
    "of one alone": ({"Editor": f"{{loras: [{WOODCUT}]}}"}, f"{APP}.deployments", "need the same user_config"),
    "unknown": (
        {"Editor": "{lora: []}", "Ingress": "{lora: []}"},
        f"{EDITOR}.user_config.lora",
        "did you mean 'loras'",
    ),
    "fused": (
        dict.fromkeys(("Editor", "Ingress"), f"{{loras: [{WOODCUT.replace('request', 'fused')}]}}"),
        f"{EDITOR}.user_config: ",
        "needs a restart",
    ),
    "with the name of a fused one": (
        dict.fromkeys(("Editor", "Ingress"), f"{{loras: [{WOODCUT.replace('woodcut', 'angles')}]}}"),
        f"{APP}.deployments",
        "more than one adapter called angles",
    ),
    "with a name of the model": (
        dict.fromkeys(("Editor", "Ingress"), f"{{loras: [{WOODCUT.replace('woodcut', 'Qwen-Image-Edit-2511')}]}}"),
        f"{APP}.deployments",
        "the adapter Qwen-Image-Edit-2511 has a name of served_model_names",
    ),
    "of another": ({"Rewriter": "{loras: []}"}, f"{APP}.deployments[1].user_config", "has no effect"),
}


@pytest.mark.parametrize(("configs", "at", "message"), USER_CONFIGS.values(), ids=USER_CONFIGS.keys())
def test_a_wrong_user_config_is_refused(write: Edit, configs: dict[str, str], at: str, message: str) -> None:
    lines = problems_of(write(with_user_config(**configs)))
    assert [line for line in lines if line.startswith(at) and message in line], lines


@pytest.mark.parametrize(
    ("name", "apply", "is_refused"),
    [("lightning", "fused", False), ("angles", "camera", True), ("cyanotype", "request", True), ("other", "", False)],
)
def test_a_name_of_the_model_is_no_adapters(write: Edit, name: str, apply: str, is_refused: bool) -> None:
    config = yaml.safe_load(CPU_FILE.read_text(encoding="utf-8"))
    args = config["applications"][0]["args"]
    args["served_model_names"] = ["Qwen-Image-Edit-2511", name]
    for lora in args["editor"]["loras"]:
        if lora["name"] == name:
            lora["apply"] = apply
    path = write(yaml.safe_dump(config))
    if is_refused:
        (line,) = problems_of(path)
        assert line.startswith(f"{APP}.args: the adapter {name} has a name of served_model_names")
    else:
        assert check_file(path)


def test_adapters_stand_in_one_place(write: Edit) -> None:
    config = f"{{loras: [{WOODCUT}]}}"
    text = with_user_config(Editor=config, Ingress=config).replace(
        "weight: 0.9", "weight: 0.9\n            apply: camera"
    )
    (line,) = problems_of(write(text))
    assert line.startswith(f"{APP}.args.editor.loras[1]: has apply: camera, and user_config replaces such adapters")


BROKEN_RULES = [
    # Text, its replacement, the problem's path, a part of its message.
    ("port: 8000", "port: http", "http_options.port", "valid integer"),
    ("port: 8000", "port: 99999", "http_options.port", "must be between 1 and 65535"),
    ("encoding: JSON", "encoding: XML", "logging_config.encoding", "Got 'XML'"),
    ("max_replicas: 7", "max_replicas: 0", f"{EDITOR}.autoscaling_config.max_replicas", "greater than 0"),
    ("min_replicas: 1", "min_replicas: 9", f"{EDITOR}.autoscaling_config", "max_replicas (7) must be"),
    ("max_queued_requests: 256", "max_queued_requests: 0", EDITOR, "max_queued_requests must be"),
    ("- name: Editor", "- name: Editr", f"{EDITOR}.name", "no such deployment (did you mean 'Editor'?)"),
    ("- name: Editor", "- nam: Editor", f"{EDITOR}.name", "Field required"),
    ("- name: Editor", "- name: Ingress", f"{EDITOR}.name", "Ingress is listed twice"),
    ("- name: Editor", "- 3\n      - name: Editor", EDITOR, "must be a mapping"),
    ("route_prefix: /", "route_prefix: api", f"{APP}.route_prefix", "must begin with a slash: /api"),
    ("serve_app.app:build", "serve_app.app:app", f"{APP}.import_path", "must be serve_app.app:build"),
    (
        "num_gpus: 1",
        "num_gpus: 0",
        f"{EDITOR}.ray_actor_options.num_gpus",
        "must be above 0: args.editor.device is cuda",
    ),
    ("num_gpus: 1", "", f"{EDITOR}.ray_actor_options.num_gpus", "must be above 0: args.editor.device is cuda"),
    (
        "- name: Editor",
        "- name: Editor\n        num_replicas: 2",
        f"{EDITOR}.num_replicas",
        "beside autoscaling_config",
    ),
    ("max_ongoing_requests: 64", "max_ongoing_requests: 15", f"{EDITOR}.max_ongoing_requests", "max_batch_size (16)"),
    ("weight: 0.9", "weight: heavy", f"{APP}.args.editor.loras[1].weight", "valid number"),
    ("weight: 0.9", "weight: .nan", f"{APP}.args.editor.loras[1].weight", "finite number"),
    ("device: cuda", "device: tpu", f"{APP}.args.rewriter.device", "'cpu' or 'cuda'"),
    ("path: Qwen/Qwen3-VL-8B-Instruct", "", f"{APP}.args.rewriter.source.path", "Field required"),
]


@pytest.mark.parametrize(("old", "new", "at", "message"), BROKEN_RULES)
def test_broken_rule_is_reported_with_its_path(write: Edit, old: str, new: str, at: str, message: str) -> None:
    lines = problems_of(write(replaced(old, new)))
    assert [line for line in lines if line.startswith(f"{at}: ") and message in line], lines


def test_cpu_device_refuses_gpus_for_editor_and_rewriter(write: Edit) -> None:
    text = CPU_FILE.read_text(encoding="utf-8").replace("num_gpus: 0", "num_gpus: 1")
    assert problems_of(write(text)) == [
        f"{EDITOR}.ray_actor_options.num_gpus: must be 0 or absent: args.editor.device is cpu",
        f"{APP}.deployments[1].ray_actor_options.num_gpus: must be 0 or absent: args.rewriter.device is cpu",
    ]


def test_rewriter_on_cuda_needs_a_gpu(write: Edit) -> None:
    text = GPU_FILE.read_text(encoding="utf-8").replace("num_gpus: 1", "num_gpus: 0", 1)
    at = f"{APP}.deployments[1].ray_actor_options.num_gpus"
    assert problems_of(write(text)) == [f"{at}: must be above 0: args.rewriter.device is cuda"]


def test_deployment_on_cuda_must_be_listed(write: Edit) -> None:
    text, _, _ = GPU_FILE.read_text(encoding="utf-8").partition("      - name: Editor")
    message = "must list Editor with num_gpus above 0: args.editor.device is cuda"
    assert problems_of(write(text)) == [f"{APP}.deployments: {message}"]


def test_rewriter_deployment_without_its_settings_is_refused(write: Edit) -> None:
    settings = yaml.safe_load(CPU_FILE.read_text(encoding="utf-8"))
    del settings["applications"][0]["args"]["rewriter"]
    assert problems_of(write(yaml.safe_dump(settings))) == [
        f"{APP}.deployments[1].name: args.rewriter is not set, so there is no Rewriter"
    ]


def test_rewriter_deployment_beside_an_endpoint_is_refused(write: Edit) -> None:
    settings = yaml.safe_load(CPU_FILE.read_text(encoding="utf-8"))
    (application,) = settings["applications"]
    application["args"]["rewriter"] = {"endpoint": "http://127.0.0.1:9/v1", "model": "qwen"}
    assert problems_of(write(yaml.safe_dump(settings))) == [
        f"{APP}.deployments[1].name: args.rewriter names an endpoint, so there is no Rewriter"
    ]
    del application["deployments"][1]
    assert "  rewriter model: qwen at http://127.0.0.1:9/v1" in describe(write(yaml.safe_dump(settings))).splitlines()


def test_rewriter_needs_a_place_for_a_batch(write: Edit) -> None:
    settings = yaml.safe_load(CPU_FILE.read_text(encoding="utf-8"))
    settings["applications"][0]["args"]["rewriter"]["max_batch_size"] = 17
    message = "must be at least args.rewriter.max_batch_size (17), or no batch fills"
    assert problems_of(write(yaml.safe_dump(settings))) == [f"{APP}.deployments[1].max_ongoing_requests: {message}"]


JOBS = f"{APP}.deployments[3]"
REPLICAS_OF_JOBS = [
    # What the file says of Jobs, the key of the problem; None: there is no problem.
    pytest.param({"num_replicas": 1}, None, id="one"),
    pytest.param({}, None, id="default"),
    pytest.param({"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}}, None, id="one by autoscaling"),
    pytest.param({"num_replicas": 2}, "num_replicas", id="two"),
    pytest.param({"num_replicas": "auto"}, "num_replicas", id="auto"),
    pytest.param({"autoscaling_config": {"max_replicas": 2}}, "autoscaling_config", id="one or two"),
    pytest.param({"autoscaling_config": {"min_replicas": 0}}, "autoscaling_config", id="none or one"),
    pytest.param(
        {"num_replicas": "auto", "autoscaling_config": {"min_replicas": 1}}, "autoscaling_config", id="auto, from one"
    ),
]


@pytest.mark.parametrize(("options", "key"), REPLICAS_OF_JOBS)
def test_jobs_has_exactly_one_replica(write: Edit, options: dict[str, object], key: str | None) -> None:
    config = yaml.safe_load(CPU_FILE.read_text(encoding="utf-8"))
    jobs = config["applications"][0]["deployments"][3]
    del jobs["num_replicas"]
    jobs.update(options)
    path = write(yaml.safe_dump(config))
    if key is None:
        assert check_file(path)
    else:
        (line,) = problems_of(path)
        assert line.startswith(f"{JOBS}.{key}: must give Jobs exactly one replica")


def test_a_broken_autoscaling_config_of_jobs_is_one_problem(write: Edit) -> None:
    config = yaml.safe_load(CPU_FILE.read_text(encoding="utf-8"))
    jobs = config["applications"][0]["deployments"][3]
    del jobs["num_replicas"]
    jobs["autoscaling_config"] = {"max_replicas": 0}
    (line,) = problems_of(write(yaml.safe_dump(config)))
    assert line.startswith(f"{JOBS}.autoscaling_config.max_replicas: ")


def test_option_left_to_the_code_is_not_judged(write: Edit) -> None:
    check_file(write(replaced("        max_ongoing_requests: 64\n", "")))


def test_all_problems_are_reported_at_once_and_on_one_line_each(write: Edit) -> None:
    text = replaced("max_replicas: 7", "max_replica: 7")
    text = text.replace("port: 8000", "port: http").replace("num_cpus: 2", "num_cpus: many", 1)
    text = text.replace("dtype: bfloat16", "dtype: int3", 1)
    places = [line.partition(": ")[0] for line in problems_of(write(text))]
    assert sorted(places) == [
        f"{APP}.args.editor.dtype",
        f"{APP}.deployments[0].ray_actor_options.num_cpus",
        f"{EDITOR}.autoscaling_config.max_replica",
        "http_options.port",
    ]


NO_CONFIG = [
    pytest.param("a: [1", r"cannot be read as YAML in line 1: .*", id="not YAML"),
    pytest.param("a: 2026-02-30", r"cannot be read as YAML: .*", id="not a date"),
    pytest.param("- a\n- b", r"must be a mapping .*", id="list"),
    pytest.param("", r"must hold one .* holds 0 documents", id="empty"),
    pytest.param("a: 1\n---\nb: 2", r"must hold one .* holds 2 documents", id="two documents"),
    pytest.param("a:\n  b: 1\n  c: 2\n  'b': 3", r"cannot be read as YAML in line 4: duplicate key 'b'", id="twice"),
    pytest.param("kind: RayService", r"spec\.serveConfigV2: must be there, .*", id="service without config"),
    pytest.param(wrapped("a: 1\na: 2"), r"spec\.serveConfigV2: .* line 2: duplicate key 'a'", id="twice inside"),
    pytest.param(wrapped("just text"), r"spec\.serveConfigV2: must be a mapping .*", id="text inside"),
]


@pytest.mark.parametrize(("text", "message"), NO_CONFIG)
def test_file_that_holds_no_config_is_refused(write: Edit, text: str, message: str) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        check_file(path)
    assert re.fullmatch(f"{re.escape(str(path))}: {message}", str(caught.value)), str(caught.value)


def test_key_may_override_a_merged_one(write: Edit) -> None:
    text = replaced("dtype: bfloat16", "<<: {dtype: float32}\n        dtype: bfloat16")
    assert check_file(write(text)).settings[0].rewriter is not None


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        check_file(tmp_path / "absent.yaml")


@pytest.mark.parametrize("text", ["{}", "applications: []", "applications: null"])
def test_file_without_application_is_refused(write: Edit, text: str) -> None:
    assert "applications: must list an application" in problems_of(write(text))


@pytest.mark.parametrize("value", ["3", "{working_dir: 3}", "{py_modules: 3}"])
def test_value_on_which_serve_breaks_is_a_problem_and_no_crash(write: Edit, value: str) -> None:
    lines = problems_of(write(with_runtime_env(value)))
    assert lines[0].startswith(EDITOR)


def test_deployment_that_breaks_serve_is_one_problem_of_its_own(write: Edit) -> None:
    assert problems_of(write(replaced("- name: Editor", "- 3\n      - name: Editor"))) == [
        f"{EDITOR}: must be a mapping"
    ]


def test_num_replicas_beside_autoscaling_hides_no_other_problem(write: Edit) -> None:
    text = replaced("- name: Editor", "- name: Editor\n        num_replicas: 2")
    text = text.replace("health_check_timeout_s: 60", "health_check_timeout_s: 0")
    places = [line.partition(": ")[0] for line in problems_of(write(text))]
    assert places == [f"{EDITOR}.num_replicas", f"{EDITOR}.health_check_timeout_s"]


def test_place_of_a_problem_holds_only_the_keys_of_the_file(write: Edit) -> None:
    lines = problems_of(write(replaced("num_replicas: 1", "num_replicas: 0", CPU_FILE)))
    assert f"{EDITOR}.num_replicas: Input should be greater than 0" in lines


def test_place_of_a_problem_in_a_tagged_union_leaves_the_tag_out(write: Edit) -> None:
    config = yaml.safe_load(CPU_FILE.read_text(encoding="utf-8"))
    config["applications"][0]["args"]["jobs"] = {"store": {"kind": "sqlite", "pth": "jobs.sqlite3"}}
    at = f"{APP}.args.jobs.store.pth"
    assert problems_of(write(yaml.safe_dump(config))) == [f"{at}: unknown key (did you mean 'path'?)"]


TOO_SMALL = [
    # A setting, the least value that passes with 64 x 64 pixels, the path of the problem.
    ("limits.max_body_bytes", 1024, f"{APP}.args.limits.max_body_bytes"),
    ("limits.max_bodies_bytes", 2048, f"{APP}.args.limits.max_bodies_bytes"),
    ("limits.max_picture_bytes", 1024, f"{APP}.args.limits.max_picture_bytes"),
    ("jobs.max_store_bytes", 2 * 64 * 64 * 3, f"{APP}.args"),
    ("jobs.max_store_bytes_per_key", 2 * 64 * 64 * 3, f"{APP}.args"),
]


@pytest.mark.parametrize(("setting", "least", "at"), TOO_SMALL)
def test_a_limit_without_room_for_a_request_is_refused(write: Edit, setting: str, least: int, at: str) -> None:
    group, _, key = setting.partition(".")
    config = yaml.safe_load(CPU_FILE.read_text(encoding="utf-8"))
    config["applications"][0]["args"][group] = {key: least}
    assert check_file(write(yaml.safe_dump(config)))
    config["applications"][0]["args"][group] = {key: least - 1}
    (line,) = problems_of(write(yaml.safe_dump(config)))
    assert line.startswith(f"{at}: ")
    assert str(least) in line


@pytest.mark.parametrize(
    "url",
    [
        "http://secret",
        "secret:6379",
        "redis:secret:6379",
        "redis://secret:port",
        "redis://secret:99999",
        "redis://secret:6379/0?socket_timeout=long",
        "unix://",
        "",
    ],
)
def test_a_url_that_is_not_of_redis_is_refused(write: Edit, url: str) -> None:
    config = yaml.safe_load(CPU_FILE.read_text(encoding="utf-8"))
    config["applications"][0]["args"]["jobs"] = {"store": {"kind": "redis", "url": url}}
    (line,) = problems_of(write(yaml.safe_dump(config)))
    assert line.startswith(f"{APP}.args.jobs.store.url: must be a URL of Redis: redis://HOST:PORT/DB, ")
    assert "secret" not in line  # It may hold a password.


@pytest.mark.parametrize("url", ["redis://redis:6379/1", "rediss://user:secret@redis", "unix:///run/redis.sock?db=1"])
def test_a_url_of_redis_passes(write: Edit, url: str) -> None:
    config = yaml.safe_load(CPU_FILE.read_text(encoding="utf-8"))
    config["applications"][0]["args"]["jobs"] = {"store": {"kind": "redis", "url": url}}
    assert check_file(write(yaml.safe_dump(config)))


def test_ray_service_is_checked_inside(write: Edit) -> None:
    text = GPU_FILE.read_text(encoding="utf-8")
    assert check_file(write(wrapped(text))).settings == check_file(GPU_FILE).settings
    lines = problems_of(write(wrapped(replaced("num_gpus:", "num_gpu:"))))
    at = f"spec.serveConfigV2.{EDITOR}.ray_actor_options.num_gpu"
    assert f"{at}: unknown key (did you mean 'num_gpus'?)" in lines


def test_alias_is_a_known_key_and_stands_for_the_name() -> None:
    class Inner(BaseModel):
        value: int = Field(alias="val")

    class Outer(BaseModel):
        model_config = ConfigDict(populate_by_name=True)
        inner: list[Inner] | None = Field(default=None, alias="in")

    problems = Problems(Path("file"))
    find_unknown_keys({"in": [{"val": 1}], "inner": [{"value": 1}]}, Outer, "", problems)
    assert str(problems.as_error()).splitlines()[1:] == ["inner[0].value: unknown key (did you mean 'val'?)"]


def test_describe_lists_what_would_run() -> None:
    assert describe(CPU_FILE).splitlines() == [
        f"{CPU_FILE}: no problems",
        "application camera-edit at http://127.0.0.1:8000/",
        "  Ingress: 1 replica, each with 0.2 CPU and no GPU",
        "  Rewriter: 1 replica, each with 0.2 CPU and no GPU",
        "  Editor: 1 replica, each with 0.5 CPU and no GPU",
        "  Jobs: 1 replica, each with 0.1 CPU and no GPU",
        "  editor model: toy:edit on cpu in float32",
        "  adapter lightning: toy:lightning (lightning.safetensors) at 1",
        "  adapter angles: toy:angles (angles.safetensors) at 0.9",
        "  adapter cyanotype: toy:cyanotype (cyanotype.safetensors) at 1, apply: request",
        "  rewriter model: toy:rewriter on cpu in float32",
        "  a change of these adapters restarts every deployment, as they are in args; in the user_config of Editor and "
        "Ingress, it would not",
    ]
    assert "  Editor: 1 to 7 replicas, each with 4 CPU and 1 GPU" in describe(GPU_FILE).splitlines()


@pytest.mark.parametrize(
    ("setting", "warning"),
    [
        ("", "names no API keys: the service starts only with CAMERA_EDIT_API_KEYS or CAMERA_EDIT_API_KEYS_FILE"),
        ("      allow_anonymous: true\n", "anyone who can reach 0.0.0.0 may use the service"),
        ("      api_keys_file: /run/secrets/keys\n", None),
    ],
)
def test_describe_warns_of_open_access(write: Edit, setting: str, warning: str | None) -> None:
    text = CPU_FILE.read_text(encoding="utf-8").replace("host: 127.0.0.1", "host: 0.0.0.0")
    lines = describe(write(text.replace("    args:\n", f"    args:\n{setting}"))).splitlines()
    warnings = [line for line in lines if "warning: " in line]
    assert len(warnings) == (warning is not None)
    assert warning is None or warning in warnings[0]


def test_describe_warns_of_a_file_of_jobs_on_several_nodes(write: Edit) -> None:
    assert f"  {SQLITE_WARNING}" not in describe(CPU_FILE).splitlines()
    text = CPU_FILE.read_text(encoding="utf-8").replace("proxy_location: HeadOnly", "proxy_location: EveryNode")
    assert f"  {SQLITE_WARNING}" in describe(write(text)).splitlines()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_set_the_proxys_middleware(path: Path) -> None:
    assert MIDDLEWARE_WARNING not in describe(path).splitlines()


@pytest.mark.parametrize(
    "options",
    [
        None,
        {"runtime_env": None},
        {"runtime_env": {}},
        {"runtime_env": {"env_vars": {"OTHER": "value"}}},
        {"runtime_env": {"env_vars": {MIDDLEWARE_VARIABLE: "serve_app.ingress.proxi:middlewares"}}},
    ],
)
def test_describe_warns_of_a_proxy_without_the_middleware(write: Edit, options: object) -> None:
    config = yaml.safe_load(CPU_FILE.read_text(encoding="utf-8"))
    config["controller_options"] = options
    assert describe(write(yaml.safe_dump(config))).splitlines()[1] == MIDDLEWARE_WARNING
    del config["controller_options"]
    assert describe(write(yaml.safe_dump(config))).splitlines()[1] == MIDDLEWARE_WARNING
    config["proxy_location"] = "Disabled"
    assert MIDDLEWARE_WARNING not in describe(write(yaml.safe_dump(config)))


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with CPU_FILE.open(encoding="utf-8") as text:
        monkeypatch.setattr("sys.stdin", text)
        assert check_file(Path("-")).settings == check_file(CPU_FILE).settings


def test_describe_refuses_what_check_refuses(write: Edit) -> None:
    with pytest.raises(ConfigError, match="did you mean 'num_gpus'"):
        describe(write(replaced("num_gpus:", "num_gpu:")))


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ("cdn.example.com", "is no origin"),
        ("ftp://cdn.example.com", "is no origin"),
        ("https://me@cdn.example.com", "is no origin"),
        ("https://cdn.example.com/", "write https://cdn.example.com"),
        ("https://CDN.example.com/pictures", "write https://cdn.example.com"),
        ("https://cdn.example.com:443", "write https://cdn.example.com"),
    ],
)
@pytest.mark.parametrize("setting", ["jobs.webhook_origins", "fetch.origins"])
def test_an_origin_that_is_not_canonical_is_refused(write: Edit, setting: str, origin: str, message: str) -> None:
    group, _, key = setting.partition(".")
    config = yaml.safe_load(CPU_FILE.read_text(encoding="utf-8"))
    config["applications"][0]["args"][group] = {key: ["https://good.example.com", origin]}
    (problem,) = problems_of(write(yaml.safe_dump(config)))
    assert f"{APP}.args.{setting}[1]" in problem
    assert message in problem


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_pin_each_repository_to_a_commit(path: Path) -> None:
    (settings,) = check_file(path).settings
    rewriter = [] if settings.rewriter is None or settings.rewriter.source is None else [settings.rewriter.source]
    sources = [settings.editor.base, *(lora.source for lora in settings.editor.loras), *rewriter]
    hub = [source for source in sources if not source.is_embedded and not source.path.startswith("/")]
    assert all(re.fullmatch("[0-9a-f]{40}", source.revision or "") for source in hub)
