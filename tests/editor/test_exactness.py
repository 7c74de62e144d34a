"""Pictures compared with those of diffusers' own pipeline, and packed edits with the same edits alone.

The reference is QwenImageEditPlusPipeline with adapters fused by diffusers and `prompt_embeds` computed from the
processor's whole output, since the pipeline itself omits `mm_token_type_ids` and so loses the M-RoPE positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock
from PIL import Image
from transformers import BatchFeature

from serve_app.config import AppSettings
from serve_app.editor.loading.load import as_edit_model, load_pipeline
from serve_app.editor.loading.lora import Factors
from serve_app.editor.model import modulation
from serve_app.editor.model.edit_model import Draft, EditModel
from serve_app.editor.model.modulation import LiveModulation
from serve_app.editor.model.prompt_encoder import PromptEncoder
from serve_app.edits.camera import CameraPose
from serve_app.edits.images import prepare
from serve_app.edits.request import EditRequest, LoraUse, Pixels, Sampling
from serve_app.edits.sizes import OutputSize, Size
from tests.pictures import difference, photograph

pytestmark = pytest.mark.usefixtures("small_areas")

ASTRONAUT, COFFEE, CHELSEA = (photograph(name) for name in ("astronaut", "coffee", "chelsea"))
TALL = photograph("coffee", width=200, height=400)
SQUARE = Size(128, 128)
SEED_7 = Sampling(seed=7)


@dataclass(frozen=True, eq=False)
class Case:
    """An edit for the engine and for the stock pipeline. Each is a key of its own: pictures have no hash."""

    prompt: str = "Change the time of day to sunset with warm light"
    pictures: tuple[Image.Image, ...] = (ASTRONAUT,)
    size: Size = SQUARE
    sampling: Sampling = SEED_7
    camera: CameraPose | None = None
    loras: tuple[LoraUse, ...] = ()


DrawStock = Callable[[Case], Pixels]
PLAIN = Case()
CASES = {
    "one reference": PLAIN,
    "three references of different aspects": Case(pictures=(ASTRONAUT, COFFEE, TALL), prompt="Picture 2's cup"),
    "four references": Case(pictures=(ASTRONAUT, COFFEE, TALL, CHELSEA), size=Size(96, 64)),
    "guidance 1.2": replace(PLAIN, sampling=Sampling(seed=1337, true_cfg_scale=1.2)),
    "guidance 4 against words": replace(PLAIN, sampling=Sampling(true_cfg_scale=4.0, negative_prompt="blurry, dark")),
    "6 steps": replace(PLAIN, sampling=Sampling(num_inference_steps=6)),
    "1 step": replace(PLAIN, sampling=Sampling(num_inference_steps=1)),
    "256x256": replace(PLAIN, size=Size(256, 256)),
    "320x192": replace(PLAIN, size=Size(320, 192)),
}

# They differ in everything that a pack could mix up.
UNLIKE = [
    Case(size=SQUARE, sampling=Sampling(seed=1, num_inference_steps=4)),
    Case("x", (COFFEE, TALL), Size(160, 96), Sampling(seed=2, num_inference_steps=6, true_cfg_scale=1.5)),
    Case("A much longer wish, " * 12, (CHELSEA,), Size(64, 112), Sampling(seed=3, num_inference_steps=5)),
    Case("make it rain", (TALL, ASTRONAUT, COFFEE), Size(80, 80), Sampling(seed=4, num_inference_steps=8)),
]
SMALL_PACK = [
    replace(PLAIN, size=Size(64, 64)),
    Case("x", (COFFEE, TALL), Size(96, 64), Sampling(seed=2, num_inference_steps=3, true_cfg_scale=1.5)),
]


@pytest.fixture(scope="module")
def stock_picture(stock_pipeline: QwenImageEditPlusPipeline) -> DrawStock:
    """diffusers' picture of a case, which is drawn once."""
    return cache(partial(draw_stock, stock_pipeline))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_diffusers(case: Case, model: EditModel, stock_picture: DrawStock, small_settings: AppSettings) -> None:
    assert difference(draw(model, small_settings, case), stock_picture(case)) <= 1


@pytest.fixture(scope="module")
def packed(model: EditModel, small_settings: AppSettings) -> list[Pixels]:
    """The unlike edits, drawn as one pack."""
    return model.draw([begin(model, small_settings, case) for case in UNLIKE])


def test_a_packed_edit_equals_the_same_edit_alone(
    packed: list[Pixels], model: EditModel, small_settings: AppSettings
) -> None:
    alone = [draw(model, small_settings, case) for case in UNLIKE]
    assert [difference(*pair) <= 1 for pair in zip(packed, alone, strict=True)] == [True] * len(UNLIKE)


def test_a_packed_edit_equals_diffusers(packed: list[Pixels], stock_picture: DrawStock) -> None:
    for pixels, case in zip(packed, UNLIKE, strict=True):
        assert difference(pixels, stock_picture(case)) <= 1


def test_an_edit_may_join_while_another_is_at_step_2(model: EditModel, small_settings: AppSettings) -> None:
    first, second = UNLIKE[1], UNLIKE[0]
    running = begin(model, small_settings, first)
    model.step([running])
    model.step([running])
    joined = model.draw([running, begin(model, small_settings, second)])
    assert difference(joined[0], draw(model, small_settings, first)) <= 1
    assert difference(joined[1], draw(model, small_settings, second)) <= 1


def test_unlike_edits_give_unlike_pictures(model: EditModel, small_settings: AppSettings) -> None:
    """The comparisons are meaningful: each condition changes the picture by far more than the tolerance."""
    others = {
        "prompt": replace(PLAIN, prompt="Change the time of day to midnight with cold light"),
        "picture": replace(PLAIN, pictures=(photograph("astronaut", 512, 500),)),
        "seed": replace(PLAIN, sampling=Sampling(seed=8)),
        "steps": replace(PLAIN, sampling=Sampling(seed=7, num_inference_steps=5)),
        "guidance": replace(PLAIN, sampling=Sampling(seed=7, true_cfg_scale=1.2)),
    }
    plain = draw(model, small_settings, PLAIN)
    moved = {what: difference(plain, draw(model, small_settings, other)) for what, other in others.items()}
    assert {what: levels for what, levels in moved.items() if levels < 5} == {}


# The same comparisons must fail when the code is wrong.


def test_lost_mrope_positions_are_noticed(
    model: EditModel,
    stock_picture: DrawStock,
    small_settings: AppSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenize = PromptEncoder.tokenize

    def without_types(self: PromptEncoder, prompt: str, pictures: list[Pixels]) -> BatchFeature:
        inputs = tokenize(self, prompt, pictures)
        del inputs["mm_token_type_ids"]
        return inputs

    monkeypatch.setattr(PromptEncoder, "tokenize", without_types)
    assert difference(draw(model, small_settings, PLAIN), stock_picture(PLAIN)) > 1


def test_a_lost_lora_alpha_is_noticed(
    stock_picture: DrawStock, small_settings: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Factors, "scale", property(lambda self: 1.0))
    wrong = as_edit_model(load_pipeline(small_settings.editor), small_settings.editor)
    assert difference(draw(wrong, small_settings, PLAIN), stock_picture(PLAIN)) > 1


def swap_first_two(timesteps: Sequence[float]) -> list[float]:
    return [*timesteps[1::-1], *timesteps[2:]]


def one_timestep_for_all(timesteps: Sequence[float]) -> list[float]:
    return [timesteps[0]] * len(timesteps)


@pytest.mark.parametrize("mutate", [swap_first_two, one_timestep_for_all])
def test_wrong_timesteps_are_noticed(
    mutate: Callable[[Sequence[float]], list[float]],
    model: EditModel,
    stock_picture: DrawStock,
    small_settings: AppSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = LiveModulation.rows
    monkeypatch.setattr(LiveModulation, "rows", lambda self, timesteps: rows(self, mutate(timesteps)))
    cases = [UNLIKE[0], UNLIKE[2]]  # 4 and 5 steps: their timesteps differ from the second step on
    packed = model.draw([begin(model, small_settings, case) for case in cases])
    right = [stock_picture(case) for case in cases]
    assert max(map(difference, packed, right)) > 1


def test_references_at_a_wrong_timestep_are_noticed(
    model: EditModel,
    stock_picture: DrawStock,
    small_settings: AppSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(modulation, "ZERO", 500.0)
    assert difference(draw(model, small_settings, PLAIN), stock_picture(PLAIN)) > 1


def begin(model: EditModel, settings: AppSettings, case: Case) -> Draft:
    size = OutputSize(made=case.size, final=case.size)
    job = EditRequest(
        request_id="test",
        prompt=case.prompt,
        sampling=case.sampling,
        size=size,
        camera=case.camera,
        loras=case.loras,
    )
    pictures = tuple(prepare(picture, settings.sizes) for picture in case.pictures)
    return model.begin([model.prepare(job, pictures)])[0]


def draw(model: EditModel, settings: AppSettings, case: Case) -> Pixels:
    return model.draw([begin(model, settings, case)])[0]


def draw_stock(pipeline: QwenImageEditPlusPipeline, case: Case) -> Pixels:
    guided = case.sampling.true_cfg_scale > 1
    negative = stock_embeds(pipeline, case.sampling.negative_prompt, case.pictures) if guided else None
    prompt = stock_embeds(pipeline, case.prompt, case.pictures)
    result = pipeline(
        list(case.pictures),
        prompt_embeds=prompt,
        prompt_embeds_mask=torch.ones(prompt.shape[:2], dtype=torch.long),
        negative_prompt_embeds=negative,
        negative_prompt_embeds_mask=None if negative is None else torch.ones(negative.shape[:2], dtype=torch.long),
        true_cfg_scale=case.sampling.true_cfg_scale,
        num_inference_steps=case.sampling.num_inference_steps,
        width=case.size.width,
        height=case.size.height,
        generator=torch.Generator().manual_seed(case.sampling.seed),
    )
    return np.asarray(result.images[0])


@torch.inference_mode()
def stock_embeds(pipeline: QwenImageEditPlusPipeline, prompt: str, pictures: tuple[Image.Image, ...]) -> torch.Tensor:
    """Prompt embeddings from the processor's whole output, as transformers intends."""
    seen = []
    for picture in pictures:
        width, height = stock.calculate_dimensions(stock.CONDITION_IMAGE_SIZE, picture.width / picture.height)
        seen.append(pipeline.image_processor.resize(picture, height, width))
    slots = "".join(
        f"Picture {number}: <|vision_start|><|image_pad|><|vision_end|>" for number in range(1, len(pictures) + 1)
    )
    text = pipeline.prompt_template_encode.format(slots + prompt)
    inputs = pipeline.processor(text=[text], images=seen, return_tensors="pt")
    hidden: torch.Tensor = pipeline.text_encoder(**inputs, output_hidden_states=True).hidden_states[-1]
    return hidden[:, pipeline.prompt_template_encode_start_idx :]
