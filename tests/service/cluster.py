"""Remove a node under load: `python -m tests.service.cluster [--clients 16]`

Three nodes on this machine: a head with the jobs and their file, and two with two editors and two ingresses between
them, of which one is removed without warning while clients send requests. Exit status 1: an accepted job was lost, or a
response was neither a success nor a retryable refusal with Retry-After.
"""

import argparse
import logging
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import requests
import yaml
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve._private.api import serve_start
from ray.serve.schema import ServeDeploySchema
from rich.console import Console

from tests.processes import free_port
from tests.service.conftest import Service, tiny_file
from tests.service.load import EDIT, post, run_clients

START_S = 120.0
BEFORE_S = 6.0
AFTER_S = 6.0
STORE_BYTES = 150 * 2**20
FIELDS = {**EDIT, "width": 128, "height": 128, "num_inference_steps": 8}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, three_nodes() as (cluster, nodes):
        service = deploy(Path(folder))
        answers, accepted, recovered_s = lose_a_node(service, cluster, nodes[0], options.clients)
        ends = Counter(end_of(service, job_id) for job_id in accepted)
    console = Console(width=120)
    console.print(f"answers: {dict(answers)}")
    console.print(f"accepted by /run: {len(accepted)}, ends: {dict(ends)}")
    console.print(f"full capacity again {recovered_s:.1f} s after the loss")
    allowed = {"200 COMPLETED", "200 IN_QUEUE", "429 with Retry-After", "503 with Retry-After"}
    return 0 if set(answers) <= allowed and set(ends) <= {"COMPLETED"} and accepted else 1


@contextmanager
def three_nodes(*, head_works: bool = False) -> Iterator[tuple[Cluster, list[Any]]]:
    """A cluster and its nodes but for the head, which gets editors and ingresses, too, if it `head_works`."""
    resources = {"head": 3, "worker": 4} if head_works else {"head": 3}
    head = {"num_cpus": 4, "resources": resources, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [
        # Each has resources for all replicas, so that lost ones can be replaced.
        cluster.add_node(num_cpus=4, resources={"worker": 4}, object_store_memory=STORE_BYTES)
        for _ in range(2)
    ]
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster, nodes
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def deploy(folder: Path, num_replicas: int = 2, **editor: Any) -> Service:
    """Deploy the tiny app with so many editors and ingresses, and wait until it answers."""
    port = free_port()
    jobs = {"store": {"kind": "sqlite", "path": str(folder / "jobs.sqlite3")}, "lease_s": 4}
    config = yaml.safe_load(tiny_file(folder / "tiny.yaml", port, jobs=jobs, editor=editor).read_text())
    for deployment in config["applications"][0]["deployments"]:
        may_be_lost = deployment["name"] in ("Editor", "Ingress")
        deployment["num_replicas"] = num_replicas if may_be_lost else 1
        deployment["ray_actor_options"]["resources"] = {"worker" if may_be_lost else "head": 1}
    schema = ServeDeploySchema.model_validate(config)
    client = serve_start(
        http_options=schema.http_options.model_dump(),
        proxy_location=schema.proxy_location,
        controller_options=schema.controller_options,
    )
    client.deploy_apps(schema)
    wait_for_editors(num_replicas)
    service = Service(f"http://127.0.0.1:{port}", folder / "log")
    deadline = time.monotonic() + START_S
    while post(service, "/runsync", {"input": EDIT})[0].job_status != "COMPLETED":
        if time.monotonic() > deadline:
            raise TimeoutError("the service does not answer")
        time.sleep(0.5)
    return service


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


def lose_a_node(
    service: Service, cluster: Cluster, node: Any, num_clients: int
) -> tuple[Counter[str], list[str], float]:
    """Answers by kind, the ids of jobs accepted by /run, and seconds until all editors ran again."""
    answers: Counter[str] = Counter()
    accepted: list[str] = []
    over, lock = threading.Event(), threading.Lock()

    def work(number: int) -> None:
        path = "/run" if number % 3 == 0 else "/runsync"
        result, envelope = post(service, path, {"input": {**FIELDS, "seed": number}})
        kind = result.job_status or ("with Retry-After" if result.retry_after else "without Retry-After")
        with lock:
            answers[f"{result.http_status} {kind}"] += 1
            if path == "/run" and result.http_status == 200:
                accepted.append(envelope["id"])
        if path == "/run":
            end_of(service, envelope["id"])

    load = threading.Thread(target=run_clients, args=(num_clients, lambda _: not over.is_set(), work))
    load.start()
    time.sleep(BEFORE_S)
    cluster.remove_node(node, allow_graceful=False)
    lost = time.monotonic()
    while num_editors() == 2 and time.monotonic() < lost + START_S:
        time.sleep(0.1)
    wait_for_editors(2)
    recovered_s = time.monotonic() - lost
    time.sleep(AFTER_S)
    over.set()
    load.join()
    return answers, accepted, recovered_s


def end_of(service: Service, job_id: str) -> str:
    for _ in range(12):
        response = requests.get(f"{service.url}/status-sync/{job_id}?wait=10000", timeout=60)
        status = str(response.json().get("status", "lost"))
        if status not in ("IN_QUEUE", "IN_PROGRESS"):
            return status
    return status


if __name__ == "__main__":
    sys.exit(main())
