"""The plan's working sets against the counted peaks of the same calls, at full width and without a device."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from serve_app.config import WeightsSource
from serve_app.editor.model.attention import varlen_attention
from serve_app.editor.model.layout import SpanShape
from serve_app.editor.model.vae import Vae
from serve_app.edits.sizes import Size
from serve_app.tools.bench.fake_card import HOPPER, FakeStep, encode_text
from serve_app.tools.check.memory import step_bytes, text_encoder_bytes, vae_working_bytes
from serve_app.tools.live_bytes import LiveBytes, peak_bytes
from serve_app.weights.architectures import EditArchitecture, find_edit_model
from tests.tools.check.test_plan import settings

MEGAPIXEL, SMALL = (64, 64), (32, 32)
SIDE_PX, CONDITION_PX, CONDITION_TOKENS, CONDITION_PATCHES = 1024, 392, 196, 784
MARGIN = 1.1

PACKS = {
    "1 reference": [SpanShape(MEGAPIXEL, (MEGAPIXEL,), 300)],
    "3 references": [SpanShape(MEGAPIXEL, (MEGAPIXEL,) * 3, 800)],
    "8 edits of 512 x 512": [SpanShape(SMALL, (SMALL,), 300)] * 8,
    "guidance": [SpanShape(MEGAPIXEL, (MEGAPIXEL,), num_text) for num_text in (300, 250)],
}


@pytest.fixture(scope="module")
def model() -> EditArchitecture:
    found = find_edit_model(WeightsSource(path="Qwen/Qwen-Image-Edit-2511"))
    assert found is not None
    return found


def check(planned: float, counted: int) -> None:
    assert counted <= planned <= MARGIN * counted, f"{planned / 1e9:.3f} GB planned, {counted / 1e9:.3f} GB counted"


@pytest.mark.parametrize("shapes", PACKS.values(), ids=PACKS)
def test_a_step_holds_what_is_planned(model: EditArchitecture, shapes: list[SpanShape]) -> None:
    step = FakeStep(model.transformer, shapes, varlen_attention(HOPPER))
    live = LiveBytes()
    step.run(live)
    check(step_bytes(model.transformer, sum(shape.num_tokens for shape in shapes), torch.bfloat16), live.peak)


@pytest.mark.parametrize(("num_tokens", "num_pictures"), [(364, 1), (864, 3), (4848, 4)])
def test_the_text_encoder_holds_what_is_planned(model: EditArchitecture, num_tokens: int, num_pictures: int) -> None:
    counted = peak_bytes(encode_text(model.text_encoder, num_tokens, num_pictures, CONDITION_PX))
    num_patches = num_pictures * CONDITION_PATCHES
    check(text_encoder_bytes(model.text_encoder, num_tokens, num_patches, torch.bfloat16), counted)


def test_the_vae_holds_what_is_planned(model: EditArchitecture) -> None:
    """Decoding takes more than encoding, and the plan has one row for both."""
    planned = vae_working_bytes(model.vae, settings())
    vae = Vae(nn.Module.to(deepcopy(model.vae), dtype=torch.bfloat16))
    encoding, decoding = (peak_bytes(partial(run, vae)) for run in (encode, decode))
    assert encoding <= decoding
    check(planned, decoding)


def encode(vae: Vae) -> None:
    vae.encode(np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8))


def decode(vae: Vae) -> None:
    tokens = torch.empty(MEGAPIXEL[0] * MEGAPIXEL[1], 64, dtype=torch.bfloat16, device="meta")
    with pytest.raises(NotImplementedError):  # tensors of the meta device have no numbers to return
        vae.decode(tokens, Size(SIDE_PX, SIDE_PX))
