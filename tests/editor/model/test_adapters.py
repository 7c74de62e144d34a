"""Adapters that are not fused: which rows use which, room on the device, and what a step costs."""

from dataclasses import replace

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from serve_app.config import LoraSettings, WeightsSource
from serve_app.editor.model.adapters import Adapter, AdapterLibrary, AdapterSlabs, Factors, Use, Uses, runs_of
from serve_app.editor.model.attention import choose_attention
from serve_app.editor.model.layout import SpanShape
from serve_app.editor.model.modulation import LiveModulation
from serve_app.editor.model.packed import PackedTransformer, Span
from serve_app.edits.camera import CameraPose
from serve_app.edits.request import EditRequest, LoraUse
from serve_app.edits.sizes import OutputSize, Size
from serve_app.errors import ConfigError, ServiceUnavailable

CPU = torch.device("cpu")
TO_Q = "transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def transformer() -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(
        num_layers=1, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(8, 12, 12)
    )


def adapter_of(transformer: QwenImageTransformer2DModel, name: str, rank: int, number: float) -> Adapter:
    """Of `attn.to_q`, where all factors are `number`."""
    layer = transformer.get_submodule(TO_Q)
    factors = Factors(torch.full((rank, layer.in_features), number), torch.full((rank, layer.out_features), number))
    return Adapter(name, {TO_Q: factors})


def slabs_of(transformer: QwenImageTransformer2DModel, rank: int) -> AdapterSlabs:
    """With room for adapters of `rank` altogether."""
    slabs = AdapterSlabs(transformer, 2**30, CPU)
    slabs.max_rank = rank
    return slabs


def use_in(slabs: AdapterSlabs, adapter: Adapter) -> list[float]:
    """The first column of the adapter's rows of a slab, after an edit has used it."""
    packed = slabs.pack([(Use(adapter, 1.0),)], [1], [1])
    first, last = packed.text.places[0, 2:].tolist()
    column: list[float] = packed.slabs[0]["attn.to_q"].down[first:last, 0].tolist()
    return column


def lora(name: str, **fields: object) -> LoraSettings:
    return LoraSettings.model_validate({"name": name, "source": WeightsSource(path="."), "file": "f", **fields})


def request(*loras: LoraUse, camera: CameraPose | None = None) -> EditRequest:
    side = Size(64, 64)
    return EditRequest(request_id="id", size=OutputSize(side, side), loras=loras, camera=camera)


def test_neighbours_with_the_same_adapter_and_weight_are_one_run(transformer: QwenImageTransformer2DModel) -> None:
    one, other = (adapter_of(transformer, name, 2, 1.0) for name in ("one", "other"))
    uses: list[Uses] = [(Use(one, 1.0),), (Use(one, 1.0), Use(other, 0.5)), (), (Use(one, 1.0),), (Use(one, -1.0),)]
    runs = runs_of(uses, [3, 4, 5, 6, 7], {one: range(2, 4), other: range(2)})
    assert runs.places.tolist() == [[0, 7, 2, 4], [12, 18, 2, 4], [3, 7, 0, 2], [18, 25, 2, 4]]
    assert runs.weights.tolist() == [1.0, 1.0, 0.5, -1.0]


def test_room_is_taken_from_the_least_recently_used(transformer: QwenImageTransformer2DModel) -> None:
    slabs = slabs_of(transformer, rank=6)
    adapters = [adapter_of(transformer, str(number), 2, float(number)) for number in range(1, 5)]
    for adapter in adapters[:3]:
        use_in(slabs, adapter)
    use_in(slabs, adapters[0])
    use_in(slabs, adapters[3])
    assert [adapter.name for adapter in slabs._places] == ["3", "1", "4"]
    assert slabs._num_rows == 6
    assert [use_in(slabs, adapter) for adapter in adapters] == [[number] * 2 for number in (1.0, 2.0, 3.0, 4.0)]


def test_gaps_that_are_too_small_are_closed(transformer: QwenImageTransformer2DModel) -> None:
    slabs = slabs_of(transformer, rank=6)
    small = [adapter_of(transformer, str(number), 2, float(number)) for number in range(1, 4)]
    large = adapter_of(transformer, "large", 4, 9.0)
    for adapter in small:
        use_in(slabs, adapter)
    use_in(slabs, small[1])  # in the middle, between the two that must leave
    assert use_in(slabs, large) == [9.0] * 4
    assert [adapter.name for adapter in slabs._places] == ["2", "large"]
    assert use_in(slabs, small[1]) == [2.0] * 2


def test_what_another_adapter_left_is_cleared(transformer: QwenImageTransformer2DModel) -> None:
    """An adapter without this layer gets rows that the last one filled."""
    slabs = slabs_of(transformer, rank=2)
    use_in(slabs, adapter_of(transformer, "one", 2, 1.0))
    name = "transformer_blocks.0.attn.to_k"
    layer = transformer.get_submodule(name)
    factors = Factors(torch.ones(2, layer.in_features), torch.ones(2, layer.out_features))
    assert use_in(slabs, Adapter("other", {name: factors})) == [0.0] * 2


def test_the_library_keeps_what_accepted_edits_may_name(transformer: QwenImageTransformer2DModel) -> None:
    old, new = (adapter_of(transformer, name, 2, 1.0) for name in ("old", "new"))
    library = AdapterLibrary()
    library.replace([(lora("old", apply="request"), old)])
    library.replace([(lora("new", apply="request"), new)])
    assert library.uses(request(LoraUse("old", 0.5), LoraUse("new", 1.0))) == ((new, 1.0), (old, 0.5))
    library.replace([(lora("new", apply="request"), new)])
    with pytest.raises(ServiceUnavailable, match="no adapter old now"):
        library.uses(request(LoraUse("old", 0.5)))


def test_the_camera_brings_its_adapter(transformer: QwenImageTransformer2DModel) -> None:
    angles = adapter_of(transformer, "angles", 2, 1.0)
    library = AdapterLibrary()
    library.replace([(lora("angles", apply="camera", weight=0.9), angles)])
    pose = CameraPose(0, 0, 1.0)
    assert library.uses(request()) == ()
    assert library.uses(request(camera=pose)) == ((angles, 0.9),)
    assert library.uses(request(LoraUse("angles", 0.5), camera=pose)) == ((angles, 0.5),)
    assert library.uses(request(LoraUse("angles", 0.0), camera=pose)) == ()


def test_an_edit_that_waits_keeps_the_camera_adapter_it_came_with(transformer: QwenImageTransformer2DModel) -> None:
    old, new = (adapter_of(transformer, name, 2, 1.0) for name in ("old", "new"))
    library = AdapterLibrary()
    library.replace([(lora("old", apply="camera"), old)])
    posed = request(camera=CameraPose(0, 0, 1.0))
    accepted = replace(posed, loras=library.named(posed), has_all_loras=True)
    library.replace([(lora("new", apply="camera"), new)])
    assert library.uses(accepted) == ((old, 1.0),)
    assert library.uses(posed) == ((new, 1.0),)


def test_slabs_that_found_no_memory_are_made_again(
    transformer: QwenImageTransformer2DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    slabs = slabs_of(transformer, rank=8)
    one, two = (adapter_of(transformer, name, rank, 1.0) for name, rank in (("one", 2), ("two", 4)))
    expected = use_in(slabs, one)

    def fail(*_: object) -> Factors:
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(slabs, "_slab", fail)
        with pytest.raises(torch.OutOfMemoryError):
            use_in(slabs, two)
    assert use_in(slabs, one) == expected
    slabs.clear()
    assert use_in(slabs, one) == expected


def test_too_little_room_for_one_edit_is_an_error_of_the_settings(transformer: QwenImageTransformer2DModel) -> None:
    adapters = [(lora(f"r{n}", apply="request"), adapter_of(transformer, f"r{n}", n, 1.0)) for n in range(1, 6)]
    camera = (lora("angles", apply="camera"), adapter_of(transformer, "angles", 2, 1.0))
    library = AdapterLibrary()
    library.max_rank = 16  # 2 for the camera, and 5 + 4 + 3 + 2 for the largest four
    library.replace([*adapters, camera])
    library.max_rank = 15
    with pytest.raises(ConfigError, match="rank 15 altogether, and those of one edit may take 16"):
        library.replace([*adapters, camera])


ADDING_PRODUCT = {torch.ops.aten.addmm_: lambda own, up, down, **_: 2 * up[0] * up[1] * down[1]}
"""The counter knows addmm, not that it can be done in place."""


@pytest.mark.parametrize("num_adapters", [1, 4])
def test_adapters_add_little_work_at_full_width(num_adapters: int) -> None:
    """Four edits at a megapixel with a reference each, and adapters of rank 16: at most 3 % more, however many there
    are, since each works on its own edits' rows."""
    with torch.device("meta"):
        model = QwenImageTransformer2DModel(num_layers=1, zero_cond_t=True).eval()
    model.pos_embed = QwenImageTransformer2DModel(num_layers=0, axes_dims_rope=(16, 56, 56)).pos_embed
    linears = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    inside = {name: layer.weight.shape for name, layer in linears.items() if name.startswith("transformer_blocks.")}
    factors = {
        name: Factors(torch.empty(16, num_in, device="meta"), torch.empty(16, num_out, device="meta"))
        for name, (num_out, num_in) in inside.items()
    }
    adapters = [Adapter(str(number), factors) for number in range(num_adapters)]
    grid = (64, 64)
    shape = SpanShape(grid, (grid,), 300)
    meta = torch.device("meta")
    picture, text = torch.empty(4096, 64, device=meta), torch.empty(300, 3584, device=meta)
    slabs = AdapterSlabs(model, 2**34, meta)
    packed = PackedTransformer(model, LiveModulation(model), choose_attention("sdpa", meta), slabs)
    flops = []
    for uses in ([()] * 4, [(Use(adapters[index % num_adapters], 1.0),) for index in range(4)]):
        spans = [Span(picture, picture, text, shape, 500.0, own) for own in uses]
        with FlopCounterMode(display=False, custom_mapping=ADDING_PRODUCT) as counter, torch.no_grad():
            packed(spans)
        flops.append(counter.get_total_flops())
    assert 1.005 < flops[1] / flops[0] < 1.03
