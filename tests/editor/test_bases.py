"""Other bases of the same pipeline class: the switches of their configuration files, compared with diffusers."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline

from serve_app.config import AppSettings, WeightsSource
from serve_app.editor.loading.load import as_edit_model, load_pipeline
from serve_app.errors import CheckpointError
from serve_app.tools.check import check_file
from serve_app.weights.locate import locate
from tests.conftest import ROOT
from tests.editor.test_exactness import PLAIN, SMALL_PACK, Case, begin, draw_stock
from tests.pictures import difference

pytestmark = pytest.mark.usefixtures("small_areas")

BASES = sorted((ROOT / "configs" / "bases").glob("*.yaml"))


def rewritten(folder: Path, tmp_path: Path, part: str, **fields: Any) -> WeightsSource:
    """The base in `folder` with other fields in the JSON file `part`; None removes one."""
    copy = copytree(folder, tmp_path / "base")
    config = {**json.loads((copy / part).read_text()), **fields}
    (copy / part).write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return WeightsSource(path=str(copy))


# 2509's transformer/config.json lacks the key; in FireRed's, an explicit false means the same.
@pytest.mark.parametrize("zero_cond_t", [None, False], ids=["Qwen-Image-Edit-2509", "FireRed-Image-Edit-1.1"])
@pytest.mark.parametrize("tables", [False, True], ids=["live", "tables"])
def test_references_at_the_edits_own_timestep_equal_diffusers(
    zero_cond_t: bool | None, tables: bool, small_settings: AppSettings, tmp_path: Path
) -> None:
    base = rewritten(locate(small_settings.editor.base), tmp_path, "transformer/config.json", zero_cond_t=zero_cond_t)
    editor = small_settings.editor.model_copy(update={"base": base, "loras": (), "adaln_tables": tables})
    settings = small_settings.model_copy(update={"editor": editor})
    model = as_edit_model(load_pipeline(editor), editor)
    pipeline = QwenImageEditPlusPipeline.from_pretrained(base.path)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**editor.scheduler.model_dump())
    pipeline.set_progress_bar_config(disable=True)
    cases: list[Case] = SMALL_PACK
    for pixels, case in zip(model.draw([begin(model, settings, case) for case in cases]), cases, strict=True):
        assert difference(pixels, draw_stock(pipeline, case)) <= 1


def test_the_switch_changes_the_picture(small_settings: AppSettings, tmp_path: Path) -> None:
    """The comparisons are meaningful."""
    base = rewritten(locate(small_settings.editor.base), tmp_path, "transformer/config.json", zero_cond_t=None)
    pictures = []
    for source in (base, small_settings.editor.base):
        editor = small_settings.editor.model_copy(update={"base": source, "loras": ()})
        model = as_edit_model(load_pipeline(editor), editor)
        pictures.append(model.draw([begin(model, small_settings, PLAIN)])[0])
    assert difference(*pictures) > 5


@pytest.mark.parametrize(
    ("part", "fields", "named"),
    [
        ("model_index.json", {"_class_name": "QwenImageEditPipeline"}, "QwenImageEditPipeline"),
        ("model_index.json", {"_class_name": "QwenImageLayeredPipeline"}, "QwenImageLayeredPipeline"),
        ("transformer/config.json", {"use_additional_t_cond": True}, "use_additional_t_cond"),
        ("transformer/config.json", {"use_layer3d_rope": True}, "use_layer3d_rope"),
    ],
)
def test_another_kind_of_model_is_rejected_by_name(
    part: str, fields: dict[str, Any], named: str, small_settings: AppSettings, tmp_path: Path
) -> None:
    base = rewritten(locate(small_settings.editor.base), tmp_path, part, **fields)
    with pytest.raises(CheckpointError, match=named):
        load_pipeline(small_settings.editor.model_copy(update={"base": base}))


@pytest.mark.parametrize("file", BASES, ids=lambda path: path.stem)
def test_the_shipped_files_pass_the_check(file: Path) -> None:
    (settings,) = check_file(file).settings
    assert settings.editor.base.path in settings.served_model_names
