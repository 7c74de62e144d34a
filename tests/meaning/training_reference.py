"""Expected pictures, drawn from the shipped weights by the training code, which shares only the files, the camera words
and the seed with the service."""

from functools import cache

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from serve_app.tiny.checkpoint import TOY_FOLDER
from serve_app.tiny.world import Picture
from serve_app.tools.training.adapter import fused
from serve_app.tools.training.flow import Model, draw
from serve_app.tools.training.mmdit import Weights
from serve_app.tools.training.recipe import ANGLES, CYANOTYPE, LIGHTNING
from serve_app.tools.training.samples import Batch, to_pictures, to_tokens
from serve_app.tools.training.score import as_weights
from serve_app.tools.training.text import Prompts


def training_picture(prompt: str, picture: Picture, seed: int, in_style: bool) -> Picture:
    """The edited picture after 4 steps, with or without the cyanotype adapter. `prompt`: the complete prompt, camera
    words included."""
    model, vae, plain = _loaded()
    style = _factors("cyanotype", "lora_A", "lora_B") if in_style else {}
    weights = fused(plain, style, CYANOTYPE.adapter)
    tokens = to_tokens(vae, picture[None])
    # The pipeline's noise: a picture's latents, packed two by two into tokens.
    noise = torch.randn((1, 1, 16, 8, 8), generator=torch.Generator().manual_seed(seed))
    noise = noise.view(1, 16, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, 16, 64)
    drawn = draw(model, weights, Batch([prompt], tokens, tokens), noise, LIGHTNING.num_steps)
    only: Picture = to_pictures(vae, drawn)[0]
    return only


@cache
def _loaded() -> tuple[Model, AutoencoderKLQwenImage, Weights]:
    edit = TOY_FOLDER / "edit"
    transformer = QwenImageTransformer2DModel.from_pretrained(edit / "transformer", dtype=torch.float32)
    vae = AutoencoderKLQwenImage.from_pretrained(edit / "vae", dtype=torch.float32)
    encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(edit / "text_encoder", dtype=torch.float32)
    model = Model(transformer, Prompts(encoder, Qwen2Tokenizer.from_pretrained(edit / "tokenizer")))
    weights = fused(as_weights(model.weights), _factors("angles", "lora_A", "lora_B"), ANGLES)
    return model, vae, fused(weights, _factors("lightning", "lora_down", "lora_up"), LIGHTNING.adapter)


def _factors(adapter: str, down: str, up: str) -> dict[str, Tensor]:
    """An adapter's factors by the training's names."""
    tensors = load_file(TOY_FOLDER / adapter / f"{adapter}.safetensors")
    roles = {f".{down}.weight": ".down", f".{up}.weight": ".up"}
    return {
        name.removeprefix("transformer.").removesuffix(suffix) + role: tensor.float()
        for name, tensor in tensors.items()
        for suffix, role in roles.items()
        if name.endswith(suffix)
    }
