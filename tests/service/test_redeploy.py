"""`serve deploy` of a Serve file of which only `user_config` has changed, while clients edit.

Its name makes this file the last one of its service, whose adapters it changes.
"""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.meaning.checks import SCENE, sent
from tests.pictures import alike
from tests.service.conftest import Host, Service
from tests.waiting import until

NUM_CLIENTS = 8
EDIT: dict[str, Any] = {"image": sent(SCENE), "prompt": "make it sunset", "seed": 3}


@pytest.fixture(scope="module")
def dashboard(toy_host: Host) -> str:
    (url, *_) = toy_host.service.logged(r"View the dashboard at.*?(http://[\d.]+:\d+)")
    return str(url)


def test_adapters_come_change_and_go_while_eight_clients_edit(toy_host: Host, dashboard: str) -> None:
    service = toy_host.service
    full, half = (picture(service, cyanotype=weight) for weight in (1.0, 0.5))
    assert not alike(full, half)
    before = replicas(dashboard)
    assert before.keys() == {"Ingress", "Jobs", "Editor", "Rewriter"}
    with editing(service) as num_edits:
        deploy(toy_host, dashboard, blueprint=1.0)
        until(lambda: offered(service) == {"cyanotype": 1.0, "blueprint": 1.0})
        assert alike(picture(service, blueprint=None), full)
        until_all_have_edited(num_edits)

        deploy(toy_host, dashboard, blueprint=0.5)
        until(lambda: offered(service)["blueprint"] == 0.5)
        assert alike(picture(service, blueprint=None), half)
        until_all_have_edited(num_edits)

        deploy(toy_host, dashboard)
        until(lambda: offered(service) == {"cyanotype": 1.0})
        refused = service.post({**EDIT, "loras": [{"name": "blueprint"}]})
        assert refused.status_code == 400
        assert "there is no adapter 'blueprint' here" in refused.json()["error"]
        until_all_have_edited(num_edits)
    assert replicas(dashboard) == before


def picture(service: Service, **weights: float | None) -> str:
    """The picture with these adapters."""
    loras = [{"name": name, "weight": weight} for name, weight in weights.items()]
    drawn: str = service.run(**EDIT, loras=loras)["output"]["images"][0]
    return drawn


def offered(service: Service) -> dict[str, float]:
    """The weights of the adapters that requests may name."""
    answer = requests.get(f"{service.url}/v1/adapters", headers=service.headers, timeout=30)
    return {each["name"]: each["weight"] for each in answer.json()["data"] if each["apply"] == "request"}


def replicas(dashboard: str) -> dict[str, list[tuple[str, int]]]:
    """State and process of each deployment's replicas."""
    (app,) = requests.get(f"{dashboard}/api/serve/applications/", timeout=30).json()["applications"].values()
    return {
        name: [(each["state"], each["pid"]) for each in deployment["replicas"]]
        for name, deployment in app["deployments"].items()
    }


def deploy(host: Host, dashboard: str, **weights: float) -> None:
    """Deploy the service's file with the toy's style and further adapters, which have its weights by other names."""
    config = yaml.safe_load(host.file.read_text())
    (application,) = config["applications"]
    (style,) = (lora for lora in application["args"]["editor"]["loras"] if lora.get("apply") == "request")
    loras = [style, *({**style, "name": name, "weight": weight} for name, weight in weights.items())]
    for deployment in application["deployments"]:
        if deployment["name"] in ("Editor", "Ingress"):
            deployment["user_config"] = {"loras": loras}
    file = host.file.with_name("redeployed.yaml")
    file.write_text(yaml.safe_dump(config))
    command: list[str | Path] = [Path(sys.executable).parent / "serve", "deploy", file, "--address", dashboard]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def editing(service: Service) -> Iterator[list[int]]:
    """Clients that edit until the end of the block, half of them with the style; yields the number of edits of each.
    None may fail."""
    ended, num_edits = threading.Event(), [0] * NUM_CLIENTS

    def edit(client: int) -> None:
        while not ended.is_set():
            picture(service, **({"cyanotype": None} if client % 2 else {}))
            num_edits[client] += 1

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        clients: list[Future[None]] = [pool.submit(edit, client) for client in range(NUM_CLIENTS)]
        try:
            yield num_edits
        finally:
            ended.set()
            for each in clients:
                each.result()


def until_all_have_edited(num_edits: list[int]) -> None:
    """Each client has finished an edit that it began after this call."""
    before = [*num_edits]
    until(lambda: all(now > then + 1 for now, then in zip(num_edits, before, strict=True)))
