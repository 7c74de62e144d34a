"""Training the tiny weights: every stage learns, resumes where it stopped, and writes what the loader reads."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from serve_app.cli import main
from serve_app.config import EditorSettings, LoraSettings, RewriterSettings, SchedulerSettings, WeightsSource
from serve_app.editor.loading.load import load_pipeline
from serve_app.editor.model.prompt_encoder import PromptEncoder
from serve_app.editor.model.schedule import make_schedule
from serve_app.editor.model.vae import Vae
from serve_app.edits.sizes import Size
from serve_app.rewriter.model import RewriterModel
from serve_app.tiny.cyanotype import cyanotype
from serve_app.tiny.wishes import VOCABULARY
from serve_app.tiny.world import POSES, is_held_out
from serve_app.tools.training import loop
from serve_app.tools.training.adapter import fused, new_adapter
from serve_app.tools.training.data import INPUT_POSES, families, shard_pictures
from serve_app.tools.training.export import export
from serve_app.tools.training.flow import draw, flow_loss, noise_like, schedule
from serve_app.tools.training.lightning import lightning_loss
from serve_app.tools.training.loop import Fit, Loss
from serve_app.tools.training.mmdit import layout_of, velocity
from serve_app.tools.training.phrases import WORDS
from serve_app.tools.training.polish import polish_loss
from serve_app.tools.training.recipe import (
    ANGLES_FLOW,
    BASE,
    CYANOTYPE,
    LIGHTNING,
    REFINE,
    DataRecipe,
    FitRecipe,
    FlowRecipe,
    PolishRecipe,
    Recipe,
    RewriterRecipe,
    TransformerRecipe,
    VaeRecipe,
)
from serve_app.tools.training.samples import Batch, Samples, encoded, to_pictures, to_tokens
from serve_app.tools.training.stages import STAGES, Training
from serve_app.tools.training.still import decode
from serve_app.tools.training.text import Prompts, new_text_encoder, new_tokenizer
from serve_app.tools.training.vae import new_vae, vae_loss

FIT = FitRecipe(seed=1, num_steps=4, batch=8, rate=1e-3, num_warm_up=1, average=0.5, score_every_s=1e9)


def tiny(flow: FlowRecipe) -> FlowRecipe:
    return replace(flow, fit=FIT)


RECIPE = Recipe(
    data=DataRecipe(num_shards=1, families_per_shard=4),
    vae=VaeRecipe(base_dim=4, num_shards=1, fit=FIT),
    polish=PolishRecipe(fit=FIT),
    transformer=TransformerRecipe(num_layers=2, num_heads=2),
    base=tiny(BASE),
    refine=replace(REFINE, fit=replace(FIT, muon_rate=1e-3)),
    angles_flow=tiny(ANGLES_FLOW),
    lightning=replace(LIGHTNING, angles=tiny(LIGHTNING.angles), base=tiny(LIGHTNING.base)),
    cyanotype=replace(CYANOTYPE, angles=tiny(CYANOTYPE.angles)),
    cyanotype_shards=1,
    rewriter=RewriterRecipe(num_layers=1, fit=FIT),
)


def training_in(folder: Path) -> Training:
    return Training(folder, RECIPE, device="cpu", fast=False)


@pytest.fixture(scope="module", autouse=True)
def few_scenes() -> Iterator[None]:
    """One scene for all scores: their values are not judged here."""
    with pytest.MonkeyPatch.context() as patched:
        for module in ("stages", "run"):
            patched.setattr(f"serve_app.tools.training.{module}.NUM_SCENES", 1)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Training:
    training = training_in(tmp_path_factory.mktemp("training"))
    assert all(getattr(training, stage)(float("inf")) for stage in STAGES)
    return training


@pytest.fixture(scope="module")
def exported(trained: Training, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export(training_in(trained.folder), folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(exported: Path) -> QwenImageEditPlusPipeline:
    return QwenImageEditPlusPipeline.from_pretrained(exported / "edit", dtype=torch.float32)


def learns(parameters: dict[str, torch.nn.Parameter], loss_of: Loss, folder: Path) -> bool:
    """Whether some steps on one and the same batch lower its loss."""
    fit = Fit("fixed", parameters, replace(FIT, num_steps=1000, rate=3e-3), folder)
    losses = [fit.advance(lambda _: loss_of(np.random.default_rng(0))) for _ in range(10)]
    return losses[-1] < losses[0]


def test_the_autoencoder_learns_and_so_does_its_decoder_alone(trained: Training) -> None:
    pictures = shard_pictures(RECIPE.data, 0, trained.folder).reshape(-1, 64, 64, 3)
    vae = new_vae(RECIPE.vae)
    assert learns(dict(vae.named_parameters()), vae_loss(vae, RECIPE.vae, pictures), trained.folder)
    decoder = {name: each for name, each in vae.named_parameters() if name.startswith("decoder")}
    samples = Samples(RECIPE.data, to_tokens(vae, pictures).view(4, -1, 16, 64))
    prompts: list[str] = []

    def draw_at_once(batch: Batch, _: np.random.Generator) -> Tensor:
        prompts.extend(batch.prompts)
        torch.testing.assert_close(samples.tokens[batch.places].float(), batch.targets)
        return batch.targets

    assert learns(decoder, polish_loss(vae, RECIPE.polish, pictures, samples, draw_at_once), trained.folder)
    assert len(prompts) == 10 * FIT.batch / 2


def test_base_and_adapters_learn(trained: Training) -> None:
    training = training_in(trained.folder)
    model, samples = training.model, training.samples
    weights = model.weights
    assert learns(weights, flow_loss(model, samples, RECIPE.base, lambda: weights), training.folder)
    base = {name: each.detach() for name, each in weights.items()}
    angles = new_adapter(model.transformer, RECIPE.angles)
    loss_of = flow_loss(model, samples, RECIPE.angles_flow, lambda: fused(base, angles, RECIPE.angles))
    assert learns(angles, loss_of, training.folder)
    lightning = new_adapter(model.transformer, RECIPE.lightning.adapter)
    loss_of = lightning_loss(model, samples, RECIPE.lightning, base, base, lightning)
    assert learns(lightning, loss_of, training.folder)


def test_the_style_adapter_learns_to_draw_the_same_edits_in_blue(trained: Training) -> None:
    training = training_in(trained.folder)
    tokens = encoded(training.trained_vae, RECIPE.data, training.folder)
    blue = encoded(training.trained_vae, RECIPE.data, training.folder, cyanotype)
    plain_batch, blue_batch = (
        Samples(RECIPE.data, tokens, targets).draw(CYANOTYPE.angles.mix, 8, np.random.default_rng(0))
        for targets in (None, blue)
    )
    assert blue_batch.prompts == plain_batch.prompts
    assert torch.equal(blue_batch.references, plain_batch.references)
    pictures = shard_pictures(RECIPE.data, 0, training.folder).reshape(-1, 64, 64, 3)[plain_batch.places]
    for batch, shown in ((plain_batch, pictures), (blue_batch, cyanotype(pictures))):
        torch.testing.assert_close(batch.targets, to_tokens(training.trained_vae, shown), rtol=0, atol=0.01)
    factors = new_adapter(training.model.transformer, RECIPE.cyanotype.adapter)
    frozen, samples = training.drawing_weights, Samples(RECIPE.data, tokens, blue)
    loss_of = lightning_loss(training.model, samples, RECIPE.cyanotype, frozen, frozen, factors)
    assert learns(factors, loss_of, training.folder)


def test_muon_trains_the_blocks_matrices_and_adamw_the_rest(trained: Training) -> None:
    written = load_file(trained.folder / "refine.safetensors").keys()
    by_muon = {name.removeprefix("momentum_buffer/") for name in written if name.startswith("momentum_buffer/")}
    by_adamw = {name.removeprefix("exp_avg_sq/") for name in written if name.startswith("exp_avg_sq/")}
    assert not by_muon & by_adamw
    assert {
        name.removeprefix("transformer_blocks.0.") for name in by_muon if ".0.attn." in name or "0.img_mlp" in name
    } >= {f"attn.{each}.weight" for each in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "to_add_out")}
    assert {"img_in.weight", "proj_out.weight", "transformer_blocks.0.img_mod.1.weight"} <= by_adamw


@pytest.mark.parametrize("stage", ["vae", "base", "refine", "angles", "lightning", "polish", "cyanotype", "rewriter"])
def test_a_resumed_stage_equals_an_uninterrupted_one(
    trained: Training, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in trained.folder.iterdir():
        if path.name not in (f"{stage}.safetensors", f"{stage}.csv", "polished"):
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0)  # so that one step is one piece
    pieces = [getattr(training_in(tmp_path), stage)(1e-9) for _ in range(FIT.num_steps)]
    assert pieces == [False, False, False, True]
    whole, resumed = (load_file(folder / f"{stage}.safetensors") for folder in (trained.folder, tmp_path))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], each) for name, each in whole.items())


def test_training_pictures_are_of_training_scenes_from_their_poses() -> None:
    for family in families(DataRecipe(families_per_shard=24), 3):
        shown = list(family.shown())
        assert len(shown) == DataRecipe().num_rows
        assert not any(is_held_out(scene) for scene, _ in shown)
        inputs = [POSES[place] for _, place in shown[:4]]
        assert {(pose.elevation, pose.distance) for pose in inputs} <= {(30, 1.0), (30, 1.8), (60, 1.0), (60, 1.8)}
    assert len(INPUT_POSES) == 32


@pytest.mark.parametrize("num_pictures", [1, 2])
def test_prompts_are_embedded_as_the_engine_does(pipeline: QwenImageEditPlusPipeline, num_pictures: int) -> None:
    tokenizer = new_tokenizer()
    ours = Prompts(new_text_encoder(tokenizer, RECIPE.text), tokenizer)
    template, dropped = pipeline.prompt_template_encode, pipeline.prompt_template_encode_start_idx
    engine = PromptEncoder(pipeline.text_encoder, pipeline.processor, template, dropped, max_tokens=1000)
    pictures = [np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)] * num_pictures
    prompts = [
        f"{POSES[7].tokens} paint the box blue",
        "",
        "use the style of picture 2",
        f"make it night {POSES[3].tokens}",
    ]
    embeds, mask = ours.batch(prompts, num_pictures)
    for prompt, own, true in zip(prompts, embeds, mask, strict=True):
        (expected,) = engine.encode([engine.tokenize(prompt, pictures)])
        torch.testing.assert_close(own[true], expected, rtol=0, atol=2e-5)


def test_every_word_is_a_token_and_the_template_still_is_64() -> None:
    tokenizer = new_tokenizer()
    letters = [word for word in WORDS if word.isalpha()]
    assert all(len(tokenizer.tokenize(f" {word}")) == 1 for word in letters)
    assert not set(letters) & {word for pose in POSES for word in pose.tokens.split()} - set(VOCABULARY)


def test_the_fast_transformer_equals_the_stock_one(pipeline: QwenImageEditPlusPipeline) -> None:
    model, generator = pipeline.transformer, torch.Generator().manual_seed(0)
    latents, references = (torch.randn(3, count, 64, generator=generator) for count in (16, 32))
    text, mask = torch.randn(3, 9, 64, generator=generator), torch.arange(9)[None] < torch.tensor([[9], [4], [7]])
    sigma = torch.tensor([1.0, 0.5, 0.03])
    stock = model(
        torch.cat([latents, references], dim=1),
        encoder_hidden_states=text,
        encoder_hidden_states_mask=mask,
        timestep=sigma,
        img_shapes=[[(1, 4, 4)] * 3] * 3,
    ).sample[:, :16]
    weights = dict(model.named_parameters())
    ours = velocity(weights, layout_of(model, 9, 2), latents, references, text, mask, sigma)
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-4)


def test_the_flat_autoencoder_equals_the_stock_one_and_tokens_are_the_engines(
    pipeline: QwenImageEditPlusPipeline,
) -> None:
    vae, picture = pipeline.vae, np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        decode(vae, latents), vae.decode(latents[:, :, None]).sample[:, :, 0].float(), rtol=0, atol=1e-4
    )
    tokens, engine = to_tokens(vae, picture[None]), Vae(vae, "stock")
    torch.testing.assert_close(tokens[0], engine.encode(picture), rtol=0, atol=1e-3)
    apart = to_pictures(vae, tokens)[0].astype(int) - engine.decode(tokens[0], Size(64, 64))
    assert abs(apart).max() <= 1


def test_the_schedule_is_the_engines() -> None:
    ours, engine = schedule(4), make_schedule(SchedulerSettings(), 4, 16)
    assert ours == pytest.approx([*(step / 1000 for step in engine.steps), 0.0], abs=1e-6)
    assert ours == pytest.approx([1, 0.9, 0.75, 0.5, 0], abs=1e-6)


def test_what_is_exported_draws_what_the_training_saw(
    trained: Training, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded, audited and fused as the service does it, then run by the stock pipeline."""
    loras = (
        lora(exported, "angles", 0.9, 2 * 14),
        lora(exported, "lightning", 1.0, 2 * 12),
        lora(exported, "cyanotype", 1.0, 2 * 6),
    )
    for each in loras:
        tensors = load_file(Path(each.source.path) / each.file)
        assert all(tensor.dtype == torch.float16 or name.endswith("alpha") for name, tensor in tensors.items())
    base = WeightsSource(path=str(exported / "edit"))
    pipeline = load_pipeline(EditorSettings(base=base, loras=loras, device="cpu", dtype="float32"))
    pipeline.set_progress_bar_config(disable=True)
    training, prompt = training_in(trained.folder), f"{POSES[40].tokens} make it night"
    picture = shard_pictures(RECIPE.data, 0, trained.folder)[0, 0]
    noise = noise_like(torch.empty(1, 16, 64), np.random.default_rng(3))
    tokens = to_tokens(training.trained_vae, picture[None])
    weights = training.cyanotype_weights
    ours = to_pictures(training.trained_vae, draw(training.model, weights, Batch([prompt], tokens, tokens), noise, 4))[
        0
    ]
    for name in ("CONDITION_IMAGE_SIZE", "VAE_IMAGE_SIZE"):
        monkeypatch.setattr(pipeline_qwenimage_edit_plus, name, 64 * 64)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**SchedulerSettings().model_dump())
    stock = pipeline(
        image=[Image.fromarray(picture)],
        prompt=prompt,
        height=64,
        width=64,
        num_inference_steps=4,
        true_cfg_scale=1.0,
        latents=noise,
        output_type="np",
    ).images[0]
    assert abs(ours - stock * 255).max() <= 2


def test_the_command_resumes_what_is_there_and_exports_it_with_its_scores(
    trained: Training, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("serve_app.tools.training.run.Recipe", lambda: RECIPE)
    assert main(["tiny", "--train", str(trained.folder)]) == 0
    exported = trained.folder / "export"
    assert f"and their scores (about.json) are in {exported}" in capsys.readouterr().out
    about = json.loads((exported / "about.json").read_text())
    assert (about["recipe"], about["data_seed"]) == (RECIPE.key, RECIPE.data.seed)
    assert {"azimuth", "camera_db", "held_out_words_wishes_db", "no_lightning_camera_db"} <= about["scores"].keys()
    assert {"cyanotype_pose", "no_cyanotype_camera_db"} <= about["scores"].keys()
    with Image.open(exported / "camera.png") as sheet:
        assert sheet.size == (13 * 66, 16 * 66)
    rewriter = RewriterSettings(source=WeightsSource(path=str(exported / "rewriter")), device="cpu", dtype="float32")
    model = RewriterModel(rewriter)
    assert model.generate([model.prepare("make it better", ())]) is not None


def test_the_command_trains_the_style_adapter_alone_and_adds_its_scores_to_the_others(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {"recipe": "an older one", "data_seed": 7, "scores": {"azimuth": 0.5, "cyanotype_pose": 2.0}}
    (exported / "about.json").write_text(json.dumps(others))
    for name, value in {"Recipe": lambda: RECIPE, "TOY_FOLDER": exported}.items():
        monkeypatch.setattr(f"serve_app.tools.training.run.{name}", value)
    command = ["tiny", "--train", "--cyanotype", str(tmp_path)]
    assert main([*command, "--minutes", "0"]) == 0
    assert f"`camera-edit tiny --train --cyanotype {tmp_path}` resumes" in capsys.readouterr().out
    assert main(command) == 0
    about = json.loads((tmp_path / "export" / "about.json").read_text())
    assert (about["recipe"], about["data_seed"], about["scores"]["azimuth"]) == (RECIPE.key, 7, 0.5)
    assert about["scores"]["cyanotype_pose"] <= 1
    own, other = (
        load_file(folder / "cyanotype" / "cyanotype.safetensors") for folder in (tmp_path / "export", exported)
    )
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_the_export_does_not_name_the_folder_of_the_training(trained: Training, exported: Path) -> None:
    texts = [path.read_text() for path in exported.rglob("*.json")]
    assert texts
    assert not [text for text in texts if str(trained.folder) in text]


def lora(folder: Path, name: str, weight: float, expected_modules: int) -> LoraSettings:
    source = WeightsSource(path=str(folder / name))
    file = f"{name}.safetensors"
    return LoraSettings(name=name, source=source, file=file, weight=weight, expected_modules=expected_modules)
