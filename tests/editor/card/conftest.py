"""The architecture of the real model, and the settings of every shipped file for CUDA."""

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from serve_app.config import AppSettings, WeightsSource
from serve_app.weights.architectures import EditArchitecture, find_edit_model
from tests.conftest import ROOT
from tests.editor.card.fake import ADA, HOPPER, FakeCard

FILES = (
    ROOT / "serve_config.yaml",
    *sorted((ROOT / "configs").glob("gpu-*.yaml")),
    ROOT / "configs" / "kuberay" / "base" / "serve-config.yaml",
)
ADA_FILES = {"gpu-1x24gb.yaml", "gpu-1x48gb.yaml"}
"""The others are for Hopper cards."""


@pytest.fixture(scope="session")
def architecture() -> EditArchitecture:
    found = find_edit_model(WeightsSource(path="Qwen/Qwen-Image-Edit-2511"))
    assert found is not None
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests that use `file` once for the files that set the editor alike."""
    if "file" in metafunc.fixturenames:
        alike = defaultdict(list)
        for file in FILES:
            alike[str((cuda_settings(file).editor, capability(file)))].append(file)
        names = [" ".join(file.name for file in files) for files in alike.values()]
        metafunc.parametrize("file", [files[0] for files in alike.values()], ids=names, scope="module")


@pytest.fixture(scope="module")
def settings(file: Path) -> AppSettings:
    return cuda_settings(file)


@pytest.fixture(scope="module")
def card(file: Path) -> FakeCard:
    return FakeCard(capability(file))


@cache
def cuda_settings(file: Path) -> AppSettings:
    """The application's settings in a Serve file or a RayService."""
    (config,) = (config for config in _serve_configs(file) if "applications" in config)
    return AppSettings.model_validate(config["applications"][0]["args"])


def _serve_configs(file: Path) -> Iterator[dict[str, list[dict[str, object]]]]:
    for document in yaml.safe_load_all(file.read_text()):
        yield yaml.safe_load(document.get("spec", {}).get("serveConfigV2", "{}")) or document


def capability(file: Path) -> tuple[int, int]:
    return ADA if file.name in ADA_FILES else HOPPER
