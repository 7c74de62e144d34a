"""The official JavaScript clients, under Node: the tests themselves are in tests/clients/."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.pages import ADDRESS, programs
from tests.pictures import photograph
from tests.service.conftest import Service

CLIENTS = ROOT / "tests" / "clients"

needs_node = pytest.mark.skipif(
    shutil.which("npm") is None and "CI" not in os.environ, reason="Node.js and npm are not installed"
)


@pytest.fixture(scope="module")
def installed() -> Path:
    """The folder of the clients' tests, its pinned packages installed."""
    done = subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=CLIENTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return CLIENTS


@needs_node
@pytest.mark.parametrize("client", ["runpod", "openai", "ai-sdk", "mcp"])
def test_all_methods(client: str, installed: Path, service: Service, tmp_path: Path) -> None:
    photograph("astronaut", 96, 64).save(tmp_path / "photo.png")
    done = subprocess.run(
        ["node", "--test", f"{client}.test.mjs"],
        cwd=installed,
        env={**os.environ, "BASE_URL": service.url, "PICTURE": str(tmp_path / "photo.png")},
        capture_output=True,
        text=True,
        timeout=180,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# skipped 0" in done.stdout or "skipped 0" in done.stdout


@needs_node
def test_readmes_clients_reach_the_service(installed: Path, service: Service, tmp_path: Path) -> None:
    (program,) = programs("js")
    calls = "console.log((await client.models.list()).data[0].id, (await endpoint.health()).workers.ready);"
    (tmp_path / "node_modules").symlink_to(installed / "node_modules")
    (tmp_path / "readme.mjs").write_text(program.replace(ADDRESS, service.url) + calls)
    done = subprocess.run(["node", "readme.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["Qwen/Qwen-Image-Edit-2511", "1"]
