"""The official JavaScript clients, under Node: the tests themselves are in tests/clients/."""

from pathlib import Path

import pytest

from tests.pages import ADDRESS, programs
from tests.pictures import photograph
from tests.service.conftest import Service
from tests.service.node import installed_clients, needs_node, run


@needs_node
@pytest.mark.parametrize("client", ["runpod", "openai", "ai-sdk", "mcp"])
def test_all_methods(client: str, service: Service, tmp_path: Path) -> None:
    photograph("astronaut", 96, 64).save(tmp_path / "photo.png")
    environment = {"BASE_URL": service.url, "PICTURE": str(tmp_path / "photo.png")}
    output = run(["node", "--test", f"{client}.test.mjs"], installed_clients(), **environment)
    print(output)
    assert "skipped 0" in output
    if client == "mcp":
        assert service.logged(r"edit mcp-typescript cancelled after")


@needs_node
def test_readmes_clients_reach_the_service(service: Service, tmp_path: Path) -> None:
    (program,) = programs("js")
    calls = "console.log((await client.models.list()).data[0].id, (await endpoint.health()).workers.ready);"
    (tmp_path / "node_modules").symlink_to(installed_clients() / "node_modules")
    (tmp_path / "readme.mjs").write_text(program.replace(ADDRESS, service.url) + calls)
    assert run(["node", "readme.mjs"], tmp_path).split() == ["Qwen/Qwen-Image-Edit-2511", "1"]
