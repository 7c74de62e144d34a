"""Remove a node under load: `python -m tests.service.cluster [--clients 16]`

Three nodes on this machine: a head with the jobs and their file, and two with two editors and two ingresses between
them, of which one is removed without warning while clients send requests. Exit status 1: an accepted job was lost, or a
response was neither a success nor a retryable refusal with Retry-After.
"""

import argparse
import asyncio
import logging
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
import requests
import yaml
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.schema import ServeDeploySchema
from rich.console import Console

from serve_app.tools import serve_run
from serve_app.tools.load.load import Outcome, closed_loop
from serve_app.tools.load.mix import EditKind
from tests.processes import free_port
from tests.service.conftest import Service, tiny_file
from tests.service.load import EDIT, Record, errors_of, post, send_load

START_S = 120.0
BEFORE_S = 6.0
AFTER_S = 6.0
STORE_BYTES = 150 * 2**20
MIX = (
    EditKind(weight=2, size="128x128", num_inference_steps=8),
    EditKind(weight=1, size="128x128", num_inference_steps=8, previews=1),
)
"""Two thirds by /runsync, the others by /run and /stream."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, three_nodes() as (cluster, nodes):
        service = deploy(config_in(Path(folder)))
        record, errors, recovered_s = lose_a_node(service, cluster, nodes[0], options.clients)
        ends = Counter(end_of(service, job_id) for job_id in record.accepted)
    console = Console(width=120)
    console.print(f"answers: {dict(record.answers)}; failed requests: {dict(errors)}")
    console.print(f"accepted by /run: {len(record.accepted)}, ends: {dict(ends)}")
    console.print(f"full capacity again {recovered_s:.1f} s after the loss")
    allowed = {"200", "429 with Retry-After", "503 with Retry-After"}
    is_right = set(record.answers) <= allowed and set(errors) <= {"HTTP 429", "HTTP 503"}
    return 0 if is_right and set(ends) == {"COMPLETED"} else 1


@contextmanager
def three_nodes(*, head_works: bool = False) -> Iterator[tuple[Cluster, list[Any]]]:
    """A cluster and its nodes but for the head, which gets editors and ingresses, too, if it `head_works`."""
    resources = {"head": 3, "worker": 4, "editor": 1} if head_works else {"head": 3}
    head = {"num_cpus": 4, "resources": resources, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [
        # Each has resources for all replicas, so that lost ones can be replaced.
        cluster.add_node(num_cpus=4, resources={"worker": 4, "editor": 1}, object_store_memory=STORE_BYTES)
        for _ in range(2)
    ]
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster, nodes
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def config_in(folder: Path, num_replicas: int = 2, **editor: Any) -> dict[str, Any]:
    """A Serve config of the tiny app without a rewriter, with so many editors and ingresses, on a free port. Its files
    are in a folder."""
    jobs = {"store": {"kind": "sqlite", "path": str(folder / "jobs.sqlite3")}, "lease_s": 4}
    file = tiny_file(folder / "tiny.yaml", free_port(), jobs=jobs, editor=editor, rewriter=None)
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    for deployment in deployments_of(config):
        may_be_lost = deployment["name"] in ("Editor", "Ingress")
        deployment["num_replicas"] = num_replicas if may_be_lost else 1
        deployment["ray_actor_options"]["resources"] = {"worker" if may_be_lost else "head": 1}
    return config


def deploy(config: dict[str, Any]) -> Service:
    """Deploy the app, and wait until all editors run and it answers."""
    apply(config)
    (num_editors,) = (each["num_replicas"] for each in deployments_of(config) if each["name"] == "Editor")
    wait_for_editors(num_editors)
    service = Service(f"http://127.0.0.1:{config['http_options']['port']}", Path("/dev/null"))
    deadline = time.monotonic() + START_S
    while post(service, "/runsync", {"input": EDIT}).get("status") != "COMPLETED":
        if time.monotonic() > deadline:
            raise TimeoutError("the service does not answer")
        time.sleep(0.5)
    return service


def apply(config: dict[str, Any]) -> None:
    """Give Serve the config, as `serve deploy` does, and return at once."""
    serve_run.deploy(ServeDeploySchema.model_validate(config))


def deployments_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    deployments: list[dict[str, Any]] = config["applications"][0]["deployments"]
    return deployments


def num_editors() -> int:
    """The number of editors that Serve reports as running."""
    deployments = serve.status().applications["camera-edit"].deployments
    states: Any = deployments["Editor"].replica_states if "Editor" in deployments else {}
    running: int = states.get("RUNNING", 0)
    return running


def wait_for_editors(number: int) -> None:
    deadline = time.monotonic() + START_S
    while num_editors() < number:
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {num_editors()} editors run")
        time.sleep(0.2)


def lose_a_node(service: Service, cluster: Cluster, node: Any, num_clients: int) -> tuple[Record, Counter[str], float]:
    """What was answered, errors of requests by kind, and seconds until all editors ran again."""
    with background_load(service, num_clients) as (record, outcomes):
        time.sleep(BEFORE_S)
        cluster.remove_node(node, allow_graceful=False)
        lost = time.monotonic()
        while num_editors() == 2 and time.monotonic() < lost + START_S:
            time.sleep(0.1)
        wait_for_editors(2)
        recovered_s = time.monotonic() - lost
        time.sleep(AFTER_S)
    return record, errors_of(outcomes), recovered_s


@contextmanager
def background_load(service: Service, num_clients: int) -> Iterator[tuple[Record, list[Outcome]]]:
    """Clients that send edits of `MIX` during the block; their outcomes are there after it."""
    record, outcomes, over = Record(), list[Outcome](), threading.Event()
    loop = partial(closed_loop, num_clients=num_clients, goes_on=lambda _: not over.is_set())
    load = threading.Thread(target=lambda: outcomes.extend(asyncio.run(send_load(service, loop, MIX, record))))
    load.start()
    try:
        yield record, outcomes
    finally:
        over.set()
        load.join()


def end_of(service: Service, job_id: str) -> str:
    for _ in range(12):
        response = requests.get(f"{service.url}/status-sync/{job_id}?wait=10000", timeout=60)
        status = str(response.json().get("status", "lost"))
        if status not in ("IN_QUEUE", "IN_PROGRESS"):
            return status
    return status


if __name__ == "__main__":
    sys.exit(main())
