"""AdaLN tables: the same pictures, and a third of the transformer off the device."""

from collections.abc import Sequence

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from serve_app.config import AppSettings, EditorSettings
from serve_app.editor.loading.load import as_edit_model, choose_modulation, load_pipeline
from serve_app.editor.model.edit_model import EditModel
from serve_app.editor.model.modulation import LiveModulation, TableModulation
from serve_app.edits.images import prepare
from serve_app.edits.request import EditRequest, Pixels, Sampling
from serve_app.edits.sizes import OutputSize, Size
from serve_app.errors import ConfigError
from tests.pictures import difference, photograph

SIZE = Size(128, 128)


@pytest.fixture(scope="module")
def settings(tiny_settings: AppSettings) -> EditorSettings:
    return tiny_settings.editor.model_copy(update={"adaln_tables": True})


@pytest.fixture(scope="module")
def tabled(settings: EditorSettings) -> EditModel:
    return as_edit_model(load_pipeline(settings), settings)


def draw(model: EditModel, settings: AppSettings, steps: Sequence[int]) -> list[Pixels]:
    pictures = (prepare(photograph("astronaut"), settings.sizes),)
    drafts = []
    for number in steps:
        job = EditRequest(
            request_id="id", prompt="x", sampling=Sampling(num_inference_steps=number), size=OutputSize(SIZE, SIZE)
        )
        drafts += model.begin([model.prepare(job, pictures)])
    return model.draw(drafts)


@pytest.mark.parametrize("steps", [[4], [1, 4, 8, 16], [17], [4, 40, 23]])
def test_pictures_are_the_same(
    steps: list[int], tabled: EditModel, model: EditModel, tiny_settings: AppSettings
) -> None:
    """Both with tabled timesteps and with others: those of 17 steps and more are computed on the CPU."""
    pairs = zip(draw(tabled, tiny_settings, steps), draw(model, tiny_settings, steps), strict=True)
    assert [levels for levels in (difference(*pair) for pair in pairs) if levels > 1] == []


def test_what_is_freed_is_every_modulation_weight(settings: EditorSettings) -> None:
    transformer = load_pipeline(settings).transformer
    before = {name: parameter.numel() for name, parameter in transformer.named_parameters()}
    tables = choose_modulation(transformer, settings)
    after = {name for name, _ in transformer.named_parameters()}
    modulation = {name for name in before if "_mod." in name}
    assert before.keys() - after == modulation
    assert isinstance(tables, TableModulation)
    assert tables.num_freed == sum(before[name] for name in modulation)


def test_rows_equal_the_live_ones(settings: EditorSettings) -> None:
    transformer = load_pipeline(settings).transformer
    live = LiveModulation(transformer)
    timesteps = [1000.0, 900.0, 12.5]
    with torch.inference_mode():
        expected = [live.rows(timesteps).of_block(index) for index in range(len(transformer.transformer_blocks))]
        tables = TableModulation(transformer, [1000.0, 900.0], torch.device("cpu"))
        rows = tables.rows(timesteps)
        for index, block in enumerate(expected):
            torch.testing.assert_close(rows.of_block(index).image, block.image)
            torch.testing.assert_close(rows.of_block(index).text, block.text)


def test_extra_rows_are_bounded_and_come_back(settings: EditorSettings) -> None:
    transformer = load_pipeline(settings).transformer
    with torch.inference_mode():
        tables = TableModulation(transformer, [1000.0], torch.device("cpu"), max_extra_rows=3)
        first_bytes = tables.table_bytes
        expected = tables.rows([100.0]).of_block(0).image.clone()
        for timestep in range(200, 210):
            tables.prepare([float(timestep)])
        assert tables.table_bytes <= first_bytes * (2 + 3) / 2
        torch.testing.assert_close(tables.rows([100.0]).of_block(0).image, expected)


def test_rows_that_a_pack_shares_survive_the_dropping(settings: EditorSettings) -> None:
    """One edit's row is in the table, another's is not, and adding it exceeds the limit."""
    transformer = load_pipeline(settings).transformer
    live = LiveModulation(transformer)
    with torch.inference_mode():
        expected = live.rows([100.0, 200.0]).of_block(0).image
        tables = TableModulation(transformer, [1000.0], torch.device("cpu"), max_extra_rows=2)
        tables.prepare([100.0, 150.0])
        torch.testing.assert_close(tables.rows([100.0, 200.0]).of_block(0).image, expected)


def test_a_shift_that_depends_on_the_size_is_refused(settings: EditorSettings) -> None:
    scheduler = settings.scheduler.model_copy(update={"base_shift": 0.5, "max_shift": 0.9})
    with pytest.raises(ConfigError, match="fixed shift"):
        choose_modulation(
            QwenImageTransformer2DModel.__new__(QwenImageTransformer2DModel),
            settings.model_copy(update={"scheduler": scheduler}),
        )
