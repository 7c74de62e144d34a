"""What may be loaded: safetensors of models that the libraries know. Never a pickle, never code from a folder."""

import ast
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from serve_app.config import AppSettings, EditorSettings, RewriterSettings, WeightsSource
from serve_app.editor.loading.load import load_pipeline
from serve_app.editor.loading.lora import read_file
from serve_app.errors import CheckpointError, LoraAuditError
from serve_app.rewriter.model import RewriterModel
from serve_app.weights.locate import MODEL_FILES, locate
from tests.conftest import ROOT

# Each component of the pipeline, and the name that its library gives to a pickle.
PICKLES = {
    "transformer": "diffusion_pytorch_model.bin",
    "vae": "diffusion_pytorch_model.bin",
    "text_encoder": "pytorch_model.bin",
}


class Tripwire:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return exec, (f"import pathlib; pathlib.Path({str(self._file)!r}).touch()",)


@pytest.fixture
def tripped(tmp_path: Path) -> Path:
    """A file that exists once a pickle was loaded, or code from a folder was run."""
    return tmp_path / "tripped"


@pytest.fixture
def editor(tiny_settings: AppSettings, tmp_path: Path) -> EditorSettings:
    """The tiny editor without adapters, in a folder of its own."""
    folder = shutil.copytree(locate(tiny_settings.editor.base), tmp_path / "edit")
    return tiny_settings.editor.model_copy(update={"base": WeightsSource(path=str(folder)), "loras": ()})


@pytest.fixture
def rewriter(tiny_settings: AppSettings, tmp_path: Path) -> RewriterSettings:
    assert tiny_settings.rewriter is not None
    assert tiny_settings.rewriter.source is not None
    folder = shutil.copytree(locate(tiny_settings.rewriter.source), tmp_path / "rewriter")
    return tiny_settings.rewriter.model_copy(update={"source": WeightsSource(path=str(folder))})


def to_pickle(folder: Path, name: str) -> None:
    """Convert a folder's weights to a loadable pickle."""
    (weights,) = folder.glob("*.safetensors")
    torch.save(load_file(weights), folder / name)
    weights.unlink()


def test_the_copied_folder_can_be_loaded(editor: EditorSettings) -> None:
    assert load_pipeline(editor).transformer is not None


@pytest.mark.parametrize(("component", "name"), PICKLES.items())
def test_a_pipeline_with_pickled_weights_is_refused(component: str, name: str, editor: EditorSettings) -> None:
    to_pickle(Path(editor.base.path) / component, name)
    with pytest.raises(CheckpointError, match="is not a Qwen-Image-Edit pipeline folder"):
        load_pipeline(editor)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl", "diffusion_pytorch_model.bin"])
@pytest.mark.parametrize("component", PICKLES)
def test_a_pickle_is_not_even_opened(component: str, name: str, editor: EditorSettings, tripped: Path) -> None:
    folder = Path(editor.base.path) / component
    next(folder.glob("*.safetensors")).unlink()
    (folder / name).write_bytes(pickle.dumps(Tripwire(tripped)))
    with pytest.raises(CheckpointError):
        load_pipeline(editor)
    assert not tripped.exists()


def test_a_rewriter_with_pickled_weights_is_refused(rewriter: RewriterSettings) -> None:
    assert rewriter.source is not None
    to_pickle(Path(rewriter.source.path), "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is not a Qwen3-VL model folder"):
        RewriterModel(rewriter)


@pytest.mark.parametrize("name", ["lora.bin", "lora.pt", "lora.safetensors"])
def test_a_pickled_adapter_is_refused_unopened(name: str, tmp_path: Path, tripped: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Tripwire(tripped)))
    with pytest.raises(LoraAuditError, match="could not be read as safetensors"):
        read_file(tmp_path / name)
    assert not tripped.exists()


def test_the_tripwire_trips(tripped: Path) -> None:
    pickle.loads(pickle.dumps(Tripwire(tripped)))
    assert tripped.exists()


def test_pickles_are_not_downloaded() -> None:
    assert not [pattern for pattern in MODEL_FILES if Path("x.bin").match(pattern) or Path("x.py").match(pattern)]


def test_a_folders_own_code_is_not_run_for_the_pipeline(editor: EditorSettings, tripped: Path) -> None:
    folder = Path(editor.base.path)
    (folder / "transformer" / "mine.py").write_text(f"open({str(tripped)!r}, 'w')\nclass Mine: ...\n")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"transformer": ["mine", "Mine"]}))
    with pytest.raises(CheckpointError):
        load_pipeline(editor)
    assert not tripped.exists()


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "tokenizer_config.json"])
def test_a_folders_own_code_is_not_run_for_the_rewriter(file: str, rewriter: RewriterSettings, tripped: Path) -> None:
    """transformers ignores it where it has a class of its own, as it has for each of these models."""
    assert rewriter.source is not None
    folder = Path(rewriter.source.path)
    (folder / "mine.py").write_text(f"open({str(tripped)!r}, 'w')\nclass Mine: ...\n")
    autos = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor", "AutoTokenizer")
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | {"auto_map": dict.fromkeys(autos, "mine.Mine")}))
    RewriterModel(rewriter)
    assert not tripped.exists()


@pytest.mark.parametrize("module", sorted((ROOT / "serve_app").rglob("*.py")), ids=lambda path: path.name)
def test_no_call_trusts_code_or_pickles(module: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)]
    for call in calls:
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg}
        assert "trust_remote_code" not in arguments, ast.unparse(call)
        assert arguments.get("use_safetensors", "True") == "True", ast.unparse(call)
        if module.name != "decode_worker.py":  # reads what this program's own process has pickled
            assert ast.unparse(call.func) not in ("torch.load", "pickle.load", "pickle.loads"), ast.unparse(call)
