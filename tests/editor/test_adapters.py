"""Adapters on request: pictures compared with diffusers' own pipeline, where the adapters are loaded but not fused."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline
from safetensors.torch import load_file, save_file
from torch import nn
from torch._dynamo.utils import counters

from serve_app.config import AppSettings, LoraSettings, WeightsSource
from serve_app.editor.loading import load as loading
from serve_app.editor.loading.load import as_edit_model, load_pipeline
from serve_app.editor.loading.lora import Factors
from serve_app.editor.model import adapters
from serve_app.editor.model.adapters import Adapter, PackAdapters, Runs, Uses
from serve_app.editor.model.edit_model import EditModel
from serve_app.editor.model.modulation import BlockRows
from serve_app.editor.model.projections import fuse_projections
from serve_app.edits.camera import CameraPose
from serve_app.edits.request import LoraUse, Pixels, Sampling
from serve_app.edits.sizes import Size
from serve_app.errors import ServiceUnavailable
from serve_app.tiny.adapters import LIGHTNING_RANK
from serve_app.weights.locate import locate
from tests.editor.conftest import fuse_by_diffusers
from tests.editor.test_exactness import ASTRONAUT, COFFEE, PLAIN, TALL, UNLIKE, Case, DrawStock, begin, draw, draw_stock
from tests.pictures import difference

pytestmark = pytest.mark.usefixtures("small_areas")

POSE = CameraPose(45, 30, 1.0)
CAMERA_WEIGHT = 0.9
SMALL = replace(PLAIN, size=Size(64, 64))


def uses(**weights: float) -> tuple[LoraUse, ...]:
    return tuple(LoraUse(name, weight) for name, weight in weights.items())


CASES = {
    "one": replace(PLAIN, loras=uses(style=1.0)),
    "one that adapts modulation": replace(PLAIN, loras=uses(angles=0.7)),
    "two at once": replace(PLAIN, loras=uses(style=0.6, angles=1.3)),
    "with a camera pose": replace(PLAIN, camera=POSE),
    "with a camera pose and another one": replace(PLAIN, camera=POSE, loras=uses(style=0.5)),
    "guidance": replace(PLAIN, loras=uses(angles=1.0, style=1.0), sampling=Sampling(true_cfg_scale=1.5)),
    "three references": replace(PLAIN, loras=uses(angles=1.0), pictures=(ASTRONAUT, COFFEE, TALL)),
    "negative": replace(PLAIN, loras=uses(style=-1.5)),
}
# None, one, the other, and both at other weights.
WEIGHTS = [(), uses(angles=1.0), uses(style=1.0), uses(angles=0.4, style=-0.8)]
# They differ in everything else, too.
FOUR = [replace(case, loras=loras) for case, loras in zip(UNLIKE, WEIGHTS, strict=True)]
TWO = [replace(SMALL, loras=uses(angles=0.6)), replace(SMALL, loras=uses(style=1.0))]


@pytest.fixture(scope="module")
def settings(small_settings: AppSettings, tmp_path_factory: pytest.TempPathFactory) -> AppSettings:
    """Lightning fused, angles for edits with a camera pose, and one that has the keys and the alpha of Lightning's file
    but other numbers, on request."""
    lightning, angles, *_ = small_settings.editor.loras
    tensors = load_file(locate(lightning.source) / lightning.file)
    torch.manual_seed(13)
    folder = tmp_path_factory.mktemp("style")
    save_file({name: tensor if name.endswith("alpha") else torch.randn_like(tensor) * tensor.std()
               for name, tensor in tensors.items()}, folder / "style.safetensors")  # fmt: skip
    style = LoraSettings(
        name="style", source=WeightsSource(path=str(folder)), file="style.safetensors", apply="request"
    )
    camera = angles.model_copy(update={"apply": "camera", "weight": CAMERA_WEIGHT})
    editor = small_settings.editor.model_copy(
        update={"loras": (lightning, camera, style), "latents_cache_bytes": 0, "prompts_cache_bytes": 0}
    )
    return small_settings.model_copy(update={"editor": editor})


def load(settings: AppSettings, **options: object) -> EditModel:
    editor = settings.editor.model_copy(update=options)
    return as_edit_model(load_pipeline(editor), editor)


@pytest.fixture(scope="module")
def adapted(settings: AppSettings) -> EditModel:
    return load(settings)


@pytest.fixture(scope="module")
def stock(settings: AppSettings) -> QwenImageEditPlusPipeline:
    editor = settings.editor
    pipeline = QwenImageEditPlusPipeline.from_pretrained(locate(editor.base))
    fuse_by_diffusers(pipeline, editor)
    for lora in editor.unfused_loras:
        pipeline.load_lora_weights(locate(lora.source), weight_name=lora.file, adapter_name=lora.name)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**editor.scheduler.model_dump())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def stock_picture(stock: QwenImageEditPlusPipeline) -> DrawStock:
    """diffusers' picture of a case, which is drawn once."""
    return cache(partial(draw_stock_with, stock))


def draw_stock_with(pipeline: QwenImageEditPlusPipeline, case: Case) -> Pixels:
    weights = {"angles": CAMERA_WEIGHT} if case.camera is not None else {}
    weights |= {lora.name: lora.weight for lora in case.loras}
    pipeline.set_adapters(["angles", "style"], [weights.get(name, 0.0) for name in ("angles", "style")])
    return draw_stock(pipeline, case)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_diffusers(case: Case, adapted: EditModel, stock_picture: DrawStock, settings: AppSettings) -> None:
    assert difference(draw(adapted, settings, case), stock_picture(case)) <= 1


def test_each_adapter_moves_the_picture(adapted: EditModel, settings: AppSettings) -> None:
    """The comparisons are meaningful."""
    cases = [replace(SMALL, loras=loras) for loras in WEIGHTS]
    plain, *others = adapted.draw([begin(adapted, settings, case) for case in cases])
    assert [levels for levels in (difference(plain, other) for other in others) if levels < 5] == []


def test_four_edits_of_one_pack_equal_the_same_edits_alone(
    adapted: EditModel, stock_picture: DrawStock, settings: AppSettings
) -> None:
    packed = adapted.draw([begin(adapted, settings, case) for case in FOUR])
    for pixels, case in zip(packed, FOUR, strict=True):
        assert difference(pixels, draw(adapted, settings, case)) <= 1
        assert difference(pixels, stock_picture(case)) <= 1


def test_the_neighbours_weights_change_no_bit(adapted: EditModel, settings: AppSettings) -> None:
    """All products have the same shapes, whatever the weights of the others are."""
    cases = [replace(SMALL, loras=loras) for loras in WEIGHTS]
    packed = adapted.draw([begin(adapted, settings, case) for case in cases])
    for index, pixels in enumerate(packed):
        others = [case if case is cases[index] else halved(case) for case in cases]
        assert difference(pixels, adapted.draw([begin(adapted, settings, case) for case in others])[index]) == 0


def halved(case: Case) -> Case:
    return replace(case, loras=tuple(LoraUse(lora.name, lora.weight / 2) for lora in case.loras))


def test_the_order_of_a_request_does_not_matter(adapted: EditModel, settings: AppSettings) -> None:
    one, other = uses(angles=0.4, style=-0.8), uses(style=-0.8, angles=0.4)
    pictures = [draw(adapted, settings, replace(SMALL, loras=loras)) for loras in (one, other)]
    assert difference(*pictures) == 0


def test_tables_and_unlike_packs(stock_picture: DrawStock, settings: AppSettings) -> None:
    """With AdaLN tables, 5 and 7 steps among them; the adapter's rows are added to the table's."""
    model = load(settings, adaln_tables=True)
    packed = model.draw([begin(model, settings, case) for case in FOUR])
    for pixels, case in zip(packed, FOUR, strict=True):
        assert difference(pixels, stock_picture(case)) <= 1


def test_query_key_and_value_by_one_layer(
    stock_picture: DrawStock, settings: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a quantized model: each adapter still acts on its own part of the layer's output."""

    def fuse(block: nn.Module) -> int:
        fuse_projections(block)
        return 0

    monkeypatch.setattr(loading, "choose_quantizer", lambda kind, device: fuse)
    model = load(settings)
    for pixels, case in zip(model.draw([begin(model, settings, case) for case in FOUR]), FOUR, strict=True):
        assert difference(pixels, stock_picture(case)) <= 1


def test_too_little_room_for_a_pack_takes_turns(
    adapted: EditModel, settings: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one of the two adapters, a pack with both runs in parts, with the same result."""
    cases = [replace(SMALL, loras=loras) for loras in (uses(angles=1.0), uses(style=1.0), uses(angles=-1.0), ())]
    right = adapted.draw([begin(adapted, settings, case) for case in cases])
    slabs = adapted._transformer._slabs
    assert slabs is not None
    monkeypatch.setattr(slabs, "max_rank", LIGHTNING_RANK)
    drafts = [begin(adapted, settings, case) for case in cases]
    assert len(slabs.parts(drafts)) == 2
    assert [difference(*pair) <= 1 for pair in zip(adapted.draw(drafts), right, strict=True)] == [True] * len(cases)


def test_an_adapter_that_the_editor_lacks_may_be_there_soon(adapted: EditModel, settings: AppSettings) -> None:
    with pytest.raises(ServiceUnavailable, match="no adapter oil now"):
        begin(adapted, settings, replace(PLAIN, loras=uses(oil=1.0)))


# The same comparisons must fail when the code is wrong.

Places = Mapping[Adapter, range]
RunsOf = Callable[[Sequence[Uses], Sequence[int], Places], Runs]


def weight_ignored(runs_of: RunsOf) -> RunsOf:
    def wrong(own: Sequence[Uses], lengths: Sequence[int], places: Places) -> Runs:
        runs = runs_of(own, lengths, places)
        return Runs(runs.places, runs.weights.sign())

    return wrong


def shifted_by_one(runs_of: RunsOf) -> RunsOf:
    def wrong(own: Sequence[Uses], lengths: Sequence[int], places: Places) -> Runs:
        runs = runs_of(own, lengths, places)
        shift = torch.tensor([1, 1, 0, 0])
        return Runs((runs.places + shift).clamp(max=torch.tensor([sum(lengths)] * 2 + [2**30] * 2)), runs.weights)

    return wrong


def of_the_neighbour(runs_of: RunsOf) -> RunsOf:
    return lambda own, lengths, places: runs_of([*own[1:], own[0]], lengths, places)


@pytest.mark.parametrize("fault", [weight_ignored, shifted_by_one, of_the_neighbour])
def test_wrong_runs_are_noticed(
    fault: Callable[[RunsOf], RunsOf],
    adapted: EditModel,
    stock_picture: DrawStock,
    settings: AppSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = [stock_picture(case) for case in TWO]
    assert max(map(difference, adapted.draw([begin(adapted, settings, case) for case in TWO]), right)) <= 1
    monkeypatch.setattr(adapters, "runs_of", fault(adapters.runs_of))
    assert max(map(difference, adapted.draw([begin(adapted, settings, case) for case in TWO]), right)) > 1


def test_a_lost_alpha_is_noticed(
    stock_picture: DrawStock, settings: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load_pipeline(settings.editor)
    monkeypatch.setattr(Factors, "scale", property(lambda self: 1.0))
    wrong = as_edit_model(pipeline, settings.editor)
    assert difference(draw(wrong, settings, CASES["one"]), stock_picture(CASES["one"])) > 1


def test_omitted_modulation_is_noticed(
    adapted: EditModel, stock_picture: DrawStock, settings: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(self: PackAdapters, index: int, rows: BlockRows, activated: torch.Tensor) -> BlockRows:
        return rows

    monkeypatch.setattr(PackAdapters, "modulate", without)
    case = replace(SMALL, loras=uses(angles=0.7))
    assert difference(draw(adapted, settings, case), stock_picture(case)) > 1


@pytest.mark.timeout(600)
def test_all_combinations_run_the_same_compiled_code(
    adapted: EditModel, settings: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as for a GPU, but not lowered to machine code, which takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    compiled = load(settings, compile=True)
    packs = [[1], [2, 1], [0, 3], [3, 2, 0, 1], [0], [0, 0]]
    for pack in packs:
        cases = [replace(SMALL, size=Size(64 + 16 * index, 64), loras=WEIGHTS[index]) for index in pack]
        pairs = zip(
            *(model.draw([begin(model, settings, case) for case in cases]) for model in (compiled, adapted)),
            strict=True,
        )
        assert [levels for levels in (difference(*pair) for pair in pairs) if levels > 1] == []
    # Before and after attention, each with adapters and without.
    assert counters["stats"]["unique_graphs"] == 4
