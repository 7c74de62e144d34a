"""The shapes that attention gets on each kind of card, and that they change no result."""

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from torch.nn.attention import varlen

from serve_app.editor.model.attention import PackAttention, choose_attention
from serve_app.editor.model.layout import Layout, SpanShape, _per_number
from serve_app.editor.model.modulation import LiveModulation
from serve_app.editor.model.packed import PackedTransformer
from serve_app.editor.model.projections import rotate
from serve_app.edits.sizes import Size
from serve_app.weights.architectures import EditArchitecture
from tests.editor.card.conftest import FILES, cuda_settings
from tests.editor.card.fake import ADA, HOPPER, NUM_BLOCKS, FakeCard, FakeEdit, draft, edit_model
from tests.editor.card.test_graphs import PACKS, packed, spans, transformer
from tests.editor.card.test_step import step

__all__ = ["transformer"]  # a fixture

SETTINGS = cuda_settings(FILES[0]).editor
SMALL = Size(256, 256)


class Calls:
    """Records the shapes with which varlen_attn is called: rows, longest span, and number of spans."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: set[tuple[int, int, int]] = set()
        attend = varlen.varlen_attn

        def recorded(
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            starts: torch.Tensor,
            ends: torch.Tensor,
            *longest: int,
        ) -> object:
            self.shapes.add((len(query), longest[0], len(starts) - 1))
            return attend(query, key, value, starts, ends, *longest)

        monkeypatch.setattr(varlen, "varlen_attn", recorded)


def steps(card: FakeCard, architecture: EditArchitecture, packs: list[list[FakeEdit]]) -> None:
    model = edit_model(card, architecture, SETTINGS)
    for pack in packs:
        step(card, model, [draft(card, edit, SETTINGS) for edit in pack])


def test_prompts_of_all_lengths_share_a_few_shapes_where_cudnn_plans_for_each(
    architecture: EditArchitecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    lengths = (200, 201, 300, 450, 510, 511, 700, 1000)
    steps(FakeCard(HOPPER), architecture, [[FakeEdit(SMALL, (SMALL,), (length,))] for length in lengths])
    # 512 rows of pictures and the prompt. Two rows of padding at least, so 510 and 511 are in different buckets.
    assert calls.shapes == {(1024, 1024, 1), (1536, 1024, 1), (1536, 1536, 1)}


def test_a_single_span_goes_to_sdpa_where_varlen_is_flash_attention(
    architecture: EditArchitecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    edit = FakeEdit(SMALL, (SMALL,), (300,))
    steps(FakeCard(ADA), architecture, [[edit]])
    assert calls.shapes == set()
    steps(FakeCard(ADA), architecture, [[edit, edit]])
    assert calls.shapes == {(2 * 812, 812, 2)}


@pytest.mark.parametrize("capability", [HOPPER, ADA])
def test_only_several_spans_are_brought_into_joint_order(
    capability: tuple[int, int], architecture: EditArchitecture
) -> None:
    card, edit = FakeCard(capability), FakeEdit(SMALL, (SMALL,))
    model = edit_model(card, architecture, SETTINGS)
    one, two = (step(card, model, [draft(card, edit, SETTINGS)] * number) for number in (1, 2))
    gathers = [work.launches.count("aten.index.Tensor") for work in (one, two)]
    assert gathers[1] - gathers[0] == 4 * NUM_BLOCKS  # query, key, value, and attention's output


def test_padding_changes_no_result_whatever_attention_returns_for_it(transformer: QwenImageTransformer2DModel) -> None:
    sdpa = choose_attention("sdpa", torch.device("cpu")).run

    def bucketed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout) -> torch.Tensor:
        assert len(query) % 64 == layout.longest % 64 == 0
        ends = layout.num_tokens
        assert not query[ends:].any()
        out = sdpa(query[:ends], key[:ends], value[:ends], layout)
        return torch.cat([out, torch.full_like(query[ends:], torch.nan)])

    padded = PackedTransformer(transformer, LiveModulation(transformer), PackAttention(bucketed, 64))
    plain = packed(transformer, compiled=False)
    with torch.inference_mode():
        for shapes in PACKS.values():
            for ours, expected in zip(padded(spans(shapes)), plain(spans(shapes)), strict=True):
                assert torch.equal(ours, expected)


def test_rows_for_compiled_code_are_never_one(transformer: QwenImageTransformer2DModel) -> None:
    """It would be compiled again for a single row of padding."""
    model = PackedTransformer(transformer, LiveModulation(transformer), PackAttention(lambda *_: torch.empty(0), 64))
    for num_text in range(1, 65):
        padding = model._layouts.of((SpanShape((4, 4), ((4, 4),), num_text),)).padding
        assert padding is not None
        assert 2 <= len(padding) < 66


def test_heads_are_rotated_as_in_diffusers_and_rounded_once() -> None:
    """Bit for bit as pairs of complex numbers in float32, rounded at the end."""
    heads, pairs = torch.randn(9, 2, 128).bfloat16(), torch.polar(torch.ones(9, 64), torch.randn(9, 64))
    expected = apply_rotary_emb_qwen(heads[None], pairs, use_real=False)[0]
    assert torch.equal(rotate(heads, _per_number(pairs)), expected)
