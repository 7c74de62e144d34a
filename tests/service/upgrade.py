"""Change a LoRA's weight under load: `python -m tests.service.upgrade [--clients 6]`

Three nodes on this machine with an editor and an ingress each, and no room for more, under the settings of the overlay
`8gpu-fixed`, by which Serve replaces one editor after another. Exit status 1: a request failed, fewer than all editors
but one were ready at any time, or not all were replaced.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import yaml
from ray.serve.context import _get_global_client
from rich.console import Console

from tests.conftest import ROOT
from tests.service.cluster import apply, background_load, config_in, deploy, deployments_of, three_nodes
from tests.service.load import errors_of
from tests.waiting import until

NUM_EDITORS = 3
OVERLAY = ROOT / "configs/kuberay/8gpu-fixed/serve-config.yaml"
SETTINGS = ("max_surge_percent", "rolling_update_percentage")
"""Of the overlay's deployments, what decides how replicas are replaced."""
BEFORE_S = AFTER_S = 5.0
UPGRADE_S = 240.0


def fixed_config(folder: Path) -> dict[str, Any]:
    """The tiny app with the overlay's settings."""
    config = config_in(folder, NUM_EDITORS)
    overlay = yaml.safe_load(yaml.safe_load(OVERLAY.read_text())["spec"]["serveConfigV2"])
    shipped = {each["name"]: each for each in deployments_of(overlay)}
    for deployment in deployments_of(config):
        settings = shipped[deployment["name"]]
        deployment |= {name: settings[name] for name in SETTINGS if name in settings}
        if deployment["name"] == "Editor":
            deployment["ray_actor_options"]["resources"] = {"editor": 1}
    return config


def running_editors() -> set[str] | None:
    """The ids of the editors that Serve reports as running; None while it reads a new config and reports nothing."""
    client = _get_global_client()
    assert client is not None
    deployments = client.get_serve_details()["applications"]["camera-edit"]["deployments"]
    if "Editor" not in deployments:
        return None
    return {each["replica_id"] for each in deployments["Editor"]["replicas"] if each["state"] == "RUNNING"}


def are_replaced(old: set[str]) -> bool:
    new = running_editors()
    return new is not None and len(new) == NUM_EDITORS and not new & old


@contextmanager
def watching() -> Iterator[list[int]]:
    """The numbers of running editors, several times a second during the block."""
    numbers, over = list[int](), Event()

    def watch() -> None:
        while not over.wait(0.2):
            if (editors := running_editors()) is not None:
                numbers.append(len(editors))

    thread = Thread(target=watch)
    thread.start()
    try:
        yield numbers
    finally:
        over.set()
        thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, three_nodes(head_works=True):
        config = fixed_config(Path(folder))
        service = deploy(config)
        old = until(running_editors)
        assert old is not None
        with background_load(service, options.clients) as (record, outcomes), watching() as numbers:
            time.sleep(BEFORE_S)
            config["applications"][0]["args"]["editor"]["loras"][0]["weight"] = 0.5
            apply(config)
            began = time.monotonic()
            until(lambda: are_replaced(old), UPGRADE_S)
            took_s = time.monotonic() - began
            time.sleep(AFTER_S)
    errors = errors_of(outcomes)
    console = Console(width=120)
    console.print(f"{NUM_EDITORS} editors replaced in {took_s:.0f} s; at least {min(numbers)} ready")
    console.print(f"requests: {len(outcomes)}; answers: {dict(record.answers)}; failed: {dict(errors)}")
    is_right = outcomes and not errors and set(record.answers) == {"200"}
    return 0 if is_right and min(numbers) >= NUM_EDITORS - 1 else 1


if __name__ == "__main__":
    sys.exit(main())
