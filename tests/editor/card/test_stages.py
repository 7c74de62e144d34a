"""What the card does before and after the steps.

Covered: the VAE both ways, previews, a finished edit's check for finite numbers, table rows of unknown timesteps, and
the language models of the text encoder and of the rewriter, the latter for its prompt and for one more token.
Not covered: the vision towers and positions of these models, which transformers computes from picture sizes that it
reads back to the host; tokens and noise, which EditModel.prepare makes on the CPU alone.
"""

import inspect
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from transformers import DynamicCache, Qwen3VLForConditionalGeneration

from serve_app.config import AppSettings, WeightsSource
from serve_app.editor.model.edit_model import EditModel
from serve_app.editor.model.modulation import TableModulation
from serve_app.editor.model.schedule import make_schedule
from serve_app.edits.sizes import Size
from serve_app.weights.architectures import EditArchitecture, find_rewriter
from tests.editor.card.fake import (
    CUDA,
    NUM_BLOCKS,
    FakeCard,
    FakeEdit,
    draft,
    edit_model,
    make,
    shallow_text_encoder,
)

SIDE = Size(384, 256)  # two tiles where the VAE works in tiles
EDIT = FakeEdit(SIDE, (SIDE,))


@pytest.fixture(scope="module")
def model(card: FakeCard, architecture: EditArchitecture, settings: AppSettings) -> EditModel:
    return edit_model(card, architecture, settings.editor)


def test_encoding_uploads_the_picture_and_nothing_else(card: FakeCard, model: EditModel) -> None:
    pixels = np.zeros((SIDE.height, SIDE.width, 3), np.uint8)
    work = card.watch(lambda: model.vae.encode(pixels))
    assert len(work.uploads) == 1
    assert (work.mixed, work.downloads, work.waits, work.on_cpu) == ([], [], [], [])


def test_a_preview_downloads_the_picture_and_nothing_else(
    card: FakeCard, model: EditModel, settings: AppSettings
) -> None:
    begun = draft(card, EDIT, settings.editor)
    begun.velocity, begun.index = card.tensor(SIDE.num_tokens, 64), 1
    work = card.watch(lambda: inspect.unwrap(EditModel.preview)(model, begun))
    assert len(work.downloads) == 1
    assert (work.mixed, work.uploads, work.waits, work.on_cpu) == ([], [], [], [])


def test_a_finished_edit_waits_once_for_the_check_of_its_numbers(
    card: FakeCard, model: EditModel, settings: AppSettings
) -> None:
    done = draft(card, EDIT, settings.editor)
    work = card.watch(lambda: inspect.unwrap(EditModel.finish)(model, done))
    assert (len(work.waits), len(work.downloads)) == (1, 1)
    assert (work.mixed, work.uploads, work.on_cpu) == ([], [], [])


@pytest.mark.parametrize("num_steps", [4, 8, 20, 28, 30, 40, 50])
def test_rows_of_the_usual_step_counts_are_there(
    num_steps: int, card: FakeCard, model: EditModel, settings: AppSettings
) -> None:
    steps = make_schedule(settings.editor.scheduler, num_steps, SIDE.num_tokens).steps
    work = card.watch(lambda: model._transformer.modulation.prepare(steps))
    assert (work.launches, work.uploads, work.downloads) == ([], [], [])


def test_rows_of_unknown_timesteps_are_computed_on_the_cpu_once(card: FakeCard, model: EditModel) -> None:
    modulation = model._transformer.modulation
    if not isinstance(modulation, TableModulation):
        return  # nothing to compute in advance
    unknown = [123.0, 45.0]
    first, second = (card.watch(lambda: modulation.prepare(unknown)) for _ in range(2))
    # The timesteps go up, their embeddings come down, and two new rows go up again for each block.
    assert (len(first.uploads), len(first.downloads)) == (1 + 2 * NUM_BLOCKS, 1)
    assert first.mixed == first.waits == []
    assert (second.launches, second.uploads) == ([], [])


def test_the_text_encoders_language_model_stays_on_its_device(
    architecture: EditArchitecture, card: FakeCard, settings: AppSettings
) -> None:
    on_card = settings.editor.text_encoder_device == "same"
    device = CUDA if on_card else torch.device("cpu")
    encoder = shallow_text_encoder(card, architecture, device)
    assert {each.dtype for each in encoder.parameters()} == {torch.bfloat16}
    with card.on():
        embeds = torch.empty(1, 564, 3584, device=device, dtype=torch.bfloat16)
        positions = torch.empty(3, 1, 564, device=device, dtype=torch.long)
    work = card.watch(
        lambda: encoder.model.language_model(inputs_embeds=embeds, position_ids=positions, use_cache=False)
    )
    assert (work.mixed, work.downloads, work.waits, work.uploads) == ([], [], [], [])
    assert bool(work.on_cpu) != on_card


def test_the_rewriters_language_model_stays_on_the_card(card: FakeCard, settings: AppSettings) -> None:
    if settings.rewriter is None or settings.rewriter.source is None:
        return
    architecture = find_rewriter(WeightsSource(path=settings.rewriter.source.path))
    assert architecture is not None
    config = deepcopy(architecture.config)
    config.text_config.num_hidden_layers, config.vision_config.depth = NUM_BLOCKS, NUM_BLOCKS
    config.vision_config.deepstack_visual_indexes = []
    with card.on():
        rewriter = make(lambda: Qwen3VLForConditionalGeneration(config).eval(), CUDA, torch.bfloat16)
    cache = DynamicCache(config=config.text_config)
    for num_tokens, num_uploads in ((1500, 2 * NUM_BLOCKS), (1, 0)):  # the prompt creates the cache
        embeds = card.tensor(1, num_tokens, config.text_config.hidden_size)
        positions = card.tensor(3, 1, num_tokens, dtype=torch.long)
        run = partial(rewriter.model.language_model, inputs_embeds=embeds, position_ids=positions)
        work = card.watch(partial(run, past_key_values=cache, use_cache=True))
        assert (work.mixed, work.downloads, work.waits, work.on_cpu) == ([], [], [], [])
        assert len(work.uploads) == num_uploads
