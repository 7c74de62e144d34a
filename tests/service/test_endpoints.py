"""Operator endpoints, health, clients that set Serve's control headers, and no public start without keys."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import yaml

from tests.conftest import ROOT
from tests.processes import free_port, starting
from tests.service.conftest import START_TIMEOUT_S, Service, jobs_of, serve_run, stop, tiny_file
from tests.service.load import EDIT
from tests.service.receiver import Receiver
from tests.service.test_peer_faults import LONG, PNG, edit


def test_health(service: Service) -> None:
    assert requests.get(f"{service.url}/health/live", timeout=30).json() == {"status": "live"}
    ready = requests.get(f"{service.url}/health/ready", timeout=30)
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"sec-fetch-site": "same-site"}, {"x-forwarded-for": "127.0.0.1"}],
    ids=str,
)
@pytest.mark.parametrize("path", ["/drain", "/undrain", "/purge-queue", "/v2/any/purge-queue"])
def test_neither_web_pages_nor_a_proxys_clients_reach_operator_endpoints(
    service: Service, path: str, headers: dict[str, str]
) -> None:
    response = requests.post(f"{service.url}{path}", headers=headers, timeout=30)
    assert response.status_code == 403, response.text
    assert requests.get(f"{service.url}/health/ready", timeout=30).status_code == 200


def test_a_drain_can_be_undone(service: Service) -> None:
    def drain(*options: str) -> None:
        command = [str(Path(sys.executable).parent / "camera-edit"), "drain", service.url, *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    try:
        drain()
        assert service.post(EDIT).status_code == 503
    finally:
        drain("--undo")
    assert service.post(EDIT).status_code == 200
    assert requests.get(f"{service.url}/health/ready", timeout=30).json() == {"status": "ready"}


def test_a_client_cannot_set_the_time_limit(service: Service) -> None:
    response = requests.post(
        f"{service.url}/runsync", json={"input": EDIT}, headers={"x-request-timeout-seconds": "0.01"}, timeout=60
    )
    assert (response.status_code, response.json()["status"]) == (200, "COMPLETED")


def test_a_client_cannot_keep_its_edit_running_after_it_leaves(service: Service) -> None:
    request_id = "staying"
    with pytest.raises(requests.ReadTimeout):
        requests.post(
            f"{service.url}/v1/images/edits",
            data=LONG,
            files={"image": PNG},
            headers={"x-request-id": request_id, "x-request-disconnect-disabled": "?1"},
            timeout=(5, 1.0),
        )
    (after_s,) = service.logged(rf"edit {request_id} cancelled after ([\d.]+) s")
    print(f"the edit left the engine {after_s} s after it was sent")
    assert edit(service).status_code == 200
    assert f"edit {request_id} done" not in service.log


@pytest.mark.parametrize(
    "name", ["serve_multiplexed_model_id", "SERVE-Multiplexed-Model-ID", "x-session-id", "X_Session_Id"]
)
def test_what_serve_reads_of_a_client_does_not_reach_it(service: Service, name: str) -> None:
    """Serve fails on values that are not UTF-8, before it calls the application."""
    response = requests.get(f"{service.url}/health", headers={name: b"\xff"}, timeout=30)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("size", [8 * 2**10, 2**20])
def test_headers_have_a_limit(service: Service, size: int) -> None:
    response = requests.get(f"{service.url}/health", headers={"x-big": "v" * size}, timeout=30)
    assert (response.status_code, response.headers["x-request-id"][:4]) == (431, "req-")
    assert response.json().keys() == {"error"}


def test_serves_own_routes_answer_the_node_alone(service: Service) -> None:
    for path in ("/-/healthz", "/-/routes"):
        assert requests.get(f"{service.url}{path}", timeout=30).status_code == 200
        assert requests.get(f"{service.url}{path}", headers={"via": "1.1 proxy"}, timeout=30).status_code == 403


def test_a_websocket_handshake_by_post_is_answered_and_closed(service: Service) -> None:
    address = urlsplit(service.url)
    request = (
        "POST /runsync HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nContent-Length: 0\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(request.encode())
        with connection.makefile("rb") as answered:
            assert answered.read().startswith(b"HTTP/1.1 400 ")


def named_file(folder: Path, **settings: Any) -> Path:
    """The tiny app on a host name that is not recognised as this machine, since names are not resolved, but is."""
    file = tiny_file(folder / "named.yaml", free_port(), **settings)
    config = yaml.safe_load(file.read_text())
    config["http_options"]["host"] = "LOCALHOST"
    file.write_text(yaml.safe_dump(config))
    return file


def test_without_keys_it_does_not_start_on_a_public_host(tmp_path: Path, receiver: Receiver) -> None:
    log_file = tmp_path / "serve.log"
    with starting():
        process = serve_run(named_file(tmp_path, jobs=jobs_of(tmp_path, receiver), rewriter=None), log_file)
        try:
            exit_code = process.wait(START_TIMEOUT_S)
        finally:
            stop(process)
    log = log_file.read_text()
    assert exit_code != 0, log
    assert "No API keys are set, and http_options.host LOCALHOST can be reached from other machines" in log
    assert "CAMERA_EDIT_API_KEYS=KEY" in log
    assert "allow_anonymous: true" in log
