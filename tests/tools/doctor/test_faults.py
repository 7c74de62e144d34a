"""Faults planted one at a time, in files, ports and servers where a test can, else in the described machine. Each must
be the only problem, and its fix must be named. A wrong Python is in test_doctor.py."""

import hashlib
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from ray._common.utils import get_ray_address_file

from serve_app.config import RANDOM_FILE
from serve_app.tiny.checkpoint import TOY_FOLDER
from serve_app.tools.check import check_file
from serve_app.tools.doctor.finding import Finding
from serve_app.tools.doctor.machine import DiskSpace, Gpu, TorchBuild, read_gpus
from serve_app.tools.doctor.resources import check_memory
from tests.conftest import ROOT
from tests.processes import free_port, redis_server
from tests.tools.doctor.machines import GB, H100, machine, on_gpu, problems, serve_file


def only(found: list[Finding]) -> tuple[str, str, str]:
    """Check, message and fix of the only problem."""
    assert len(found) == 1, found
    assert found[0].fix is not None
    return found[0].check, found[0].message, found[0].fix


def test_a_healthy_machine_has_no_problem(tmp_path: Path) -> None:
    assert problems(serve_file(tmp_path), machine(tmp_path)) == []
    assert problems(on_gpu(serve_file(tmp_path)), machine(tmp_path)) == []


def test_torch_for_cpus_only(tmp_path: Path) -> None:
    built = machine(tmp_path, torch=TorchBuild("2.14.1+cpu", None))
    check, message, fix = only(problems(on_gpu(serve_file(tmp_path)), built))
    assert (check, "built for CPUs only" in message) == ("torch", True)
    assert fix.startswith("pip uninstall -y torch torchvision && pip install torch==")
    assert problems(serve_file(tmp_path), built) == []


def test_a_driver_that_is_older_than_the_build(tmp_path: Path) -> None:
    old = Gpu(H100.name, H100.memory_bytes, "570.172.08", 9.0)
    check, message, fix = only(problems(on_gpu(serve_file(tmp_path)), machine(tmp_path, gpus=(old,))))
    assert (check, message) == ("driver", "570.172.08 is too old: CUDA 13 needs 580 or newer")
    assert "apt-get install nvidia-driver-580" in fix
    cuda_12 = machine(tmp_path, gpus=(old,), torch=TorchBuild("2.14.1+cu126", "12.6"))
    assert problems(on_gpu(serve_file(tmp_path)), cuda_12) == []


@pytest.mark.parametrize("gpus", [None, ()])
def test_no_driver_or_no_gpu(gpus: Any, tmp_path: Path) -> None:
    check, message, fix = only(problems(on_gpu(serve_file(tmp_path)), machine(tmp_path, gpus=gpus)))
    assert (check, "device: cuda" in message, bool(fix)) == ("driver", True, True)


def test_a_gpu_that_is_smaller_than_the_plan(tmp_path: Path) -> None:
    small = Gpu("small", 1.6 * GB, "580.95.05", 8.0)
    check, message, fix = only(problems(on_gpu(serve_file(tmp_path)), machine(tmp_path, gpus=(H100, small))))
    assert check == "GPU memory (Editor)"
    assert "does not fit by" in message
    assert "editor.text_encoder_device: cpu" in fix


def test_nvidia_smi_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559, 580.95.05, 9.0'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert read_gpus() == (H100,)
    program.write_text("#!/bin/sh\nexit 9\n")
    assert read_gpus() is None


@pytest.mark.parametrize(("free", "total"), [(GB, 100 * GB), (3 * GB, 100 * GB)])
def test_no_disk_space(free: int, total: int, tmp_path: Path) -> None:
    """The second one has the space, but Ray refuses a disk that is 95 % full."""
    full = machine(tmp_path, disk_of=lambda path: DiskSpace(total, free))
    found = [each for each in problems(serve_file(tmp_path), full) if each.check == "folder for Ray"]
    _, message, fix = only(found)
    assert str(tmp_path / "ray") in message
    assert fix.startswith("free space (`du -xh /")
    assert "export RAY_TMPDIR=" in fix


def test_little_memory(tmp_path: Path) -> None:
    check, _, fix = only(problems(serve_file(tmp_path), machine(tmp_path, memory_bytes=2 * GB)))
    assert (check, "container's limit" in fix) == ("memory", True)


def test_weights_that_stay_on_the_host_need_memory(tmp_path: Path) -> None:
    """The plan of `camera-edit check`: a text encoder of 16.6 GB."""
    file = ROOT / "configs" / "gpu-1x24gb.yaml"
    (settings,) = check_file(file).settings
    assert not check_memory(20 * GB, (settings,)).ok
    assert check_memory(21 * GB, (settings,)).ok


def test_a_small_dev_shm(tmp_path: Path) -> None:
    check, message, fix = only(problems(serve_file(tmp_path), machine(tmp_path, shm_bytes=64 * 2**20)))
    assert check == "/dev/shm"
    assert "0.1 GB free, Ray's object store takes 19.0 GB" in message
    assert "docker run --shm-size=19g" in fix


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check, message, fix = only(problems(serve_file(tmp_path, port=port), machine(tmp_path)))
    assert (check, f":{port} is in use by process" in message) == ("port", True)
    assert fix.startswith("kill ")
    assert problems(serve_file(tmp_path, port=port), machine(tmp_path)) == []


def test_a_host_that_is_not_this_machine(tmp_path: Path) -> None:
    # 192.0.2.0/24 is reserved for documentation.
    file = serve_file(tmp_path, lambda args: args.update(allow_anonymous=True), host="192.0.2.1")
    check, _, fix = only(problems(file, machine(tmp_path)))
    assert (check, "http_options.host" in fix) == ("port", True)


def test_a_stale_record_of_a_cluster(tmp_path: Path) -> None:
    record = Path(get_ray_address_file(None))
    record.parent.mkdir()
    record.write_text(f"127.0.0.1:{free_port()}")
    check, message, fix = only(problems(serve_file(tmp_path), machine(tmp_path)))
    assert (check, message) == ("Ray", f"{record} names a cluster that does not answer")
    assert fix == f"rm {record}"


def test_an_address_of_a_cluster_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    assert only(problems(serve_file(tmp_path), machine(tmp_path)))[::2] == ("Ray", "unset RAY_ADDRESS")


def test_missing_weights(tmp_path: Path) -> None:
    missing = tmp_path / "Qwen-Image-Edit-2511"
    file = serve_file(tmp_path, lambda args: args["editor"]["base"].update(path=str(missing)))
    check, message, fix = only(problems(file, machine(tmp_path)))
    assert (check, message) == ("weights of editor.base", f"{missing} does not exist on this machine")
    commit = "6f3ccc0b56e431dc6a0c2b2039706d7d26f22cb9"
    assert fix == f"hf download Qwen/Qwen-Image-Edit-2511 --revision {commit} --local-dir {missing}"


def test_a_truncated_shard(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    shutil.copytree(TOY_FOLDER / "edit", folder)
    file = serve_file(tmp_path, lambda args: args["editor"]["base"].update(path=str(folder)))
    assert problems(file, machine(tmp_path)) == []
    shard = next((folder / "transformer").glob("*.safetensors"))
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-1])
    check, message, fix = only(problems(file, machine(tmp_path)))
    assert check == "weights of editor.base"
    assert f"transformer/{shard.name} is truncated: {size - 1} of {size} bytes" in message
    assert fix.startswith(f"copy the weights to {folder} again")


def test_a_lora_with_a_wrong_checksum(tmp_path: Path) -> None:
    """The shipped name and size limits do not apply: `sha256` in the Serve file decides."""
    folder = tmp_path / "lora"
    shutil.copytree(TOY_FOLDER / "lightning", folder)
    lora = folder / "lightning.safetensors"

    def use(args: dict[str, Any]) -> None:
        args["editor"]["loras"][0]["source"]["path"] = str(folder)
        args["editor"]["loras"][0]["sha256"] = known

    known = hashlib.sha256(lora.read_bytes()).hexdigest()
    file = serve_file(tmp_path, use)
    assert problems(file, machine(tmp_path)) == []
    content = bytearray(lora.read_bytes())
    content[-1] ^= 1
    lora.write_bytes(content)
    check, message, fix = only(problems(file, machine(tmp_path)))
    assert check == "weights of adapter lightning"
    assert f"instead of {known}" in message
    assert str(folder) in fix


def test_a_misspelt_key(tmp_path: Path) -> None:
    file = serve_file(tmp_path, lambda args: args["editor"].update(devise="cpu"))
    check, message, fix = only(problems(file, machine(tmp_path)))
    assert check == "Serve file"
    assert "args.editor.devise: unknown key (did you mean 'device'?)" in message
    assert fix.endswith(f"camera-edit check {file}")


def test_a_public_bind_without_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = serve_file(tmp_path, host="0.0.0.0")
    check, message, fix = only(problems(file, machine(tmp_path)))
    assert (check, "No API keys are set" in message) == ("keys", True)
    assert fix == 'export CAMERA_EDIT_API_KEYS="$(openssl rand -hex 32)"'
    monkeypatch.setenv("CAMERA_EDIT_API_KEYS", "a-key")
    assert problems(file, machine(tmp_path)) == []


def test_a_key_file_without_keys(tmp_path: Path) -> None:
    empty = tmp_path / "keys"
    empty.write_text("# none\n")
    file = serve_file(tmp_path, lambda args: args.update(api_keys_file=str(empty)))
    assert only(problems(file, machine(tmp_path)))[::2] == ("keys", f"openssl rand -hex 32 >> {empty}")


def test_an_unreachable_redis(tmp_path: Path) -> None:
    def use(url: str) -> Path:
        return serve_file(tmp_path, lambda args: args["jobs"].update(store={"kind": "redis", "url": url}))

    port = free_port()
    check, message, fix = only(problems(use(f"redis://user:secret@127.0.0.1:{port}/0"), machine(tmp_path)))
    assert (check, "secret" in message) == ("Redis", False)
    assert message.startswith(f"127.0.0.1:{port} does not answer: ")
    assert fix.startswith(f"redis-server --port {port}")
    with redis_server() as url:
        assert problems(use(url), machine(tmp_path)) == []


def test_a_cache_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the place of a folder: the tests may run as root, which may write to read-only folders."""
    (tmp_path / "taken").write_text("")
    cache = tmp_path / "taken" / "cache"
    monkeypatch.setenv("CAMERA_EDIT_CACHE", str(cache))
    file = serve_file(tmp_path, base=RANDOM_FILE)
    check, message, fix = only(problems(file, machine(tmp_path)))
    assert (check, f"{cache} cannot be written to: " in message) == ("folder for tiny weights", True)
    assert "export CAMERA_EDIT_CACHE=" in fix
    monkeypatch.setenv("CAMERA_EDIT_CACHE", str(tmp_path / "cache"))
    assert problems(file, machine(tmp_path)) == []
