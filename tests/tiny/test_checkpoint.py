"""The tiny checkpoint: reproducible bytes, written completely or not at all, in the real formats."""

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from diffusers import QwenImageEditPlusPipeline
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from serve_app.config import WeightsSource
from serve_app.errors import CheckpointError
from serve_app.tiny import checkpoint
from serve_app.tiny.checkpoint import build_checkpoint, cached_checkpoint
from serve_app.weights.locate import locate
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("tiny") / "checkpoint"
    build_checkpoint(built)
    return built


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@dataclass(frozen=True)
class Made:
    """What `camera-edit tiny` did in another process: in this one, transformers may have enabled progress bars."""

    folder: Path
    run: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("command") / "weights"
    command = [sys.executable, "-m", "serve_app.cli", "tiny", str(folder)]
    return Made(folder, subprocess.run(command, cwd=ROOT, capture_output=True, text=True))


def test_another_process_builds_the_same_bytes(folder: Path, made: Made) -> None:
    assert digests(made.folder) == digests(folder)


def test_the_command_writes_the_checkpoint_and_prints_where(made: Made) -> None:
    assert (made.run.returncode, made.run.stderr) == (0, "")
    for part in checkpoint.PARTS:
        assert list((made.folder / part).rglob("*.safetensors")), part
        assert f"  {made.folder / part}  (" in made.run.stdout


def test_the_parts_are_of_the_real_classes(folder: Path) -> None:
    pipeline = QwenImageEditPlusPipeline.from_pretrained(folder / "edit")
    assert type(pipeline.transformer).__name__ == "QwenImageTransformer2DModel"
    assert type(pipeline.vae).__name__ == "AutoencoderKLQwenImage"
    assert type(pipeline.text_encoder).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert type(pipeline.tokenizer).__name__ == "Qwen2Tokenizer"
    assert type(pipeline.processor).__name__ == "Qwen2VLProcessor"
    assert pipeline.transformer.config.zero_cond_t is True
    assert pipeline.transformer.config.guidance_embeds is False
    assert Qwen3VLForConditionalGeneration.from_pretrained(folder / "rewriter").config.model_type == "qwen3_vl"
    assert type(AutoProcessor.from_pretrained(folder / "rewriter")).__name__ == "Qwen3VLProcessor"


def test_the_template_takes_exactly_64_tokens(folder: Path) -> None:
    """The pipeline drops the first 64 hidden states, whatever tokens they belong to."""
    pipeline = QwenImageEditPlusPipeline.from_pretrained(folder / "edit", transformer=None, vae=None, text_encoder=None)
    head = pipeline.prompt_template_encode.split("{}")[0]
    assert len(pipeline.tokenizer(head).input_ids) == pipeline.prompt_template_encode_start_idx == 64


def test_the_adapters_have_the_real_files_keys(folder: Path) -> None:
    lightning = load_file(folder / "lightning" / "lightning.safetensors")
    assert {key.rpartition(".attn.to_q.")[2] for key in lightning if ".0.attn.to_q." in key} == {
        "lora_down.weight",
        "lora_up.weight",
        "alpha",
    }
    down = lightning["transformer_blocks.0.attn.to_q.lora_down.weight"]
    assert lightning["transformer_blocks.0.attn.to_q.alpha"].item() != down.shape[0]
    angles = load_file(folder / "angles" / "angles.safetensors")
    assert "transformer.transformer_blocks.0.img_mod.1.lora_A.weight" in angles
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in angles)


def test_it_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(checkpoint.CACHE_VARIABLE, str(tmp_path))
    first = cached_checkpoint()
    monkeypatch.setattr(checkpoint, "build_checkpoint", lambda folder: pytest.fail("built a second time"))
    assert cached_checkpoint() == first


def test_a_half_built_one_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(checkpoint.CACHE_VARIABLE, str(tmp_path))

    def dies_half_way(folder: Path) -> None:
        (folder / "edit").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(checkpoint, "build_checkpoint", dies_half_way)
        with pytest.raises(KeyboardInterrupt):
            cached_checkpoint()
    assert list(tmp_path.iterdir()) == []
    assert sorted(path.name for path in cached_checkpoint().iterdir()) == sorted(checkpoint.PARTS)


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(FileExistsError, match="name a new folder"):
        build_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tiny:nothing", "no tiny checkpoint 'nothing'"),
        ("/nowhere/at/all", "does not exist on this node"),
        ("./nowhere", "does not exist on this node"),
    ],
)
def test_missing_weights_are_refused(path: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        locate(WeightsSource(path=path))
