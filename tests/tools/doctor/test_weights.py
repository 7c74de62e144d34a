"""Weights in the hub client's cache and in folders, and access to the hub."""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from serve_app.tiny.checkpoint import TOY_FOLDER
from serve_app.tools.doctor.examine import examine_machine
from serve_app.tools.doctor.machine import Hub, Machine
from serve_app.tools.doctor.safetensors_file import size_problem
from serve_app.tools.doctor.shipped import find_shipped
from tests.conftest import ROOT, settings_in
from tests.tools.doctor.machines import machine, problems, serve_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/toys"


def cached_toys(cache: Path) -> Path:
    """The toy edit model as the hub's client stores it: links to files that are named by their checksums."""
    repository = cache / f"models--{REPO.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(TOY_FOLDER / "edit", snapshot)
    (repository / "blobs").mkdir()
    for file in sorted(snapshot.rglob("*.safetensors")):
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        file.symlink_to(blob)
    return snapshot


def of_repository(folder: Path) -> Path:
    return serve_file(folder, lambda args: args["editor"].update(base={"path": REPO, "revision": COMMIT}))


def message(file: Path, on: Machine, deep: bool = False) -> str:
    return next(each.message for each in examine_machine(file, on, deep) if each.check == "weights of editor.base")


def test_checksums_in_the_cache_are_compared_with_deep_alone(tmp_path: Path) -> None:
    snapshot, file, on = cached_toys(tmp_path / "hub"), of_repository(tmp_path), machine(tmp_path)
    assert "checksums compared: 0" in message(file, on)
    assert "checksums compared: 3" in message(file, on, deep=True)
    assert problems(file, on, deep=True) == []
    shard = next((snapshot / "vae").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.resolve().write_bytes(content)
    assert problems(file, on) == []
    (found,) = problems(file, on, deep=True)
    assert f"vae/{shard.name} has the SHA-256" in found.message
    assert found.fix == f"hf download {REPO} vae/{shard.name} --revision {COMMIT} --force-download"


def test_checksums_beside_the_files_of_a_folder_are_compared(tmp_path: Path) -> None:
    folder = tmp_path / "toys"
    shutil.copytree(TOY_FOLDER / "edit", folder)
    shard = next((folder / "vae").glob("*.safetensors"))
    metadata = folder / ".cache" / "huggingface" / "download" / "vae" / f"{shard.name}.metadata"
    metadata.parent.mkdir(parents=True)
    file = serve_file(tmp_path, lambda args: args["editor"]["base"].update(path=str(folder)))
    metadata.write_text(f"{COMMIT}\n{hashlib.sha256(shard.read_bytes()).hexdigest()}\n1.0\n")
    assert "checksums compared: 1" in message(file, machine(tmp_path), deep=True)
    metadata.write_text(f"{COMMIT}\n{'0' * 64}\n1.0\n")
    assert f"instead of {'0' * 64}" in message(file, machine(tmp_path), deep=True)


def test_each_file_that_the_cache_lacks_is_named(tmp_path: Path) -> None:
    snapshot = cached_toys(tmp_path / "hub")
    shard = next((snapshot / "transformer").glob("*.safetensors"))
    index = {"weight_map": {"a": shard.name, "b": "two.safetensors"}}
    (snapshot / "transformer" / "all.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model_index.json").unlink()
    next((snapshot / "vae").glob("*.safetensors")).resolve().unlink()
    (found,) = problems(of_repository(tmp_path), machine(tmp_path))
    assert "model_index.json is missing" in found.message
    assert "transformer/two.safetensors is missing" in found.message
    assert "vae/diffusion_pytorch_model.safetensors is missing" in found.message
    assert found.fix is not None
    assert "transformer/two.safetensors" in found.fix


@pytest.fixture
def hub(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Hub]:
    """A server that answers each request with the parameter's status and an empty model."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps({"id": REPO, "sha": COMMIT, "siblings": []}).encode()
            self.send_response(request.param)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Hub(f"http://127.0.0.1:{server.server_port}", tmp_path / "hub", is_offline=False)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("hub", [200], indirect=True)
def test_weights_that_can_be_downloaded_are_no_problem(hub: Hub, tmp_path: Path) -> None:
    file, on = of_repository(tmp_path), machine(tmp_path, hub=hub)
    assert problems(file, on) == []
    assert message(file, on) == f"{REPO}: an unknown size will be downloaded at the first start"


@pytest.mark.parametrize("hub", [404], indirect=True)
def test_a_repository_that_the_hub_does_not_have(hub: Hub, tmp_path: Path) -> None:
    (found,) = problems(of_repository(tmp_path), machine(tmp_path, hub=hub))
    assert f"{hub.url} cannot be used: " in found.message
    assert "404" in found.message


def test_the_hub_is_not_needed_where_the_weights_are_local(tmp_path: Path) -> None:
    """The described machine's hub does not answer."""
    file, on = of_repository(tmp_path), machine(tmp_path)
    (found,) = problems(file, on)
    assert f"{on.hub.url} cannot be used" in found.message
    assert found.fix is not None
    assert found.fix.startswith(f"hf download {REPO} --revision {COMMIT} on a machine that reaches the hub")
    cached_toys(tmp_path / "hub")
    assert problems(file, on) == []


def test_missing_weights_offline(tmp_path: Path) -> None:
    offline = machine(tmp_path, hub=Hub("http://127.0.0.1:9", tmp_path / "hub", is_offline=True))
    (found,) = problems(of_repository(tmp_path), offline)
    assert found.fix == f"HF_HUB_OFFLINE=0 hf download {REPO} --revision {COMMIT}"


def test_complete_files_of_another_size_than_the_shipped_ones(tmp_path: Path) -> None:
    folder = tmp_path / "Qwen-Image-Edit-2511"
    shutil.copytree(TOY_FOLDER / "edit", folder)
    file = serve_file(tmp_path, lambda args: args["editor"]["base"].update(path=str(folder)))
    (found,) = problems(file, machine(tmp_path))
    assert "bytes of tensors instead of 40860802176" in found.message
    assert "instead of 253806966" in found.message


@pytest.mark.parametrize("content", [b"", b"\x05", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]"])
def test_a_file_without_a_header(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    assert size_problem(path) == f"is damaged: its {len(content)} bytes have no safetensors header"


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/gpu-*.yaml")), ids=lambda file: file.name)
def test_the_table_has_each_revision_of_the_shipped_files(file: Path) -> None:
    settings = settings_in(file)
    rewriter = None if settings.rewriter is None else settings.rewriter.source
    sources = [
        settings.editor.base,
        *(lora.source for lora in settings.editor.loras),
        *([rewriter] if rewriter else []),
    ]
    assert all(find_shipped(source.path, source.revision) is not None for source in sources)
    for lora in settings.editor.loras:
        shipped = find_shipped(lora.source.path, lora.source.revision)
        assert shipped is not None
        assert shipped.sha256[lora.file] == lora.sha256
