"""The tiny edit model: a diffusers folder of the real classes with random, deterministic weights."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

TEXT_HIDDEN = 64
HEAD_DIM = 32
NUM_HEADS = 4
NUM_LAYERS = 4

# The stock scheduler of the 2511 repository; the service replaces it by the one of its configuration.
STOCK_SCHEDULER = {
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "shift_terminal": 0.02,
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
}


def save_edit_model(folder: Path, tokenizer: Qwen2Tokenizer) -> QwenImageTransformer2DModel:
    """Write the pipeline folder and return its transformer, whose module names the adapters need."""
    transformer = _transformer()
    pipeline = QwenImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**STOCK_SCHEDULER),
        vae=_vae(),
        # Ten times the usual: attention that looks somewhere, so that a lost position changes the picture.
        text_encoder=random_text_encoder(tokenizer, seed=3, hidden=TEXT_HIDDEN, scale=0.2),
        tokenizer=tokenizer,
        processor=new_processor(tokenizer, max_picture_tokens=16),
        transformer=transformer,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return transformer


def _transformer() -> QwenImageTransformer2DModel:
    torch.manual_seed(1)
    model = QwenImageTransformer2DModel(
        num_layers=NUM_LAYERS,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=NUM_HEADS,
        joint_attention_dim=TEXT_HIDDEN,
        axes_dims_rope=(8, 12, 12),
        zero_cond_t=True,
    )
    with torch.no_grad():
        # Fresh linear layers barely react to what they read. Louder gates and outputs make every condition
        # (timestep, text, reference) move the picture by many grey levels, so that an error in one is seen.
        for block in model.transformer_blocks:
            block.img_mod[1].weight.mul_(4)
            block.txt_mod[1].weight.mul_(4)
            block.attn.add_v_proj.weight.mul_(6)
        model.proj_out.weight.mul_(4)
    return model.eval()


def _vae() -> AutoencoderKLQwenImage:
    torch.manual_seed(2)
    vae = AutoencoderKLQwenImage(base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1).eval()
    with torch.no_grad():
        # A random decoder is nearly flat grey: stretch its last layer to a visible contrast.
        probe = vae.decode(torch.randn(1, 16, 1, 16, 16)).sample
        vae.decoder.conv_out.weight.mul_(0.4 / probe.std())
        vae.decoder.conv_out.bias.zero_()
        moments = vae.encode(torch.rand(1, 3, 1, 128, 128) * 2 - 1).latent_dist.mode()
        vae.register_to_config(
            latents_mean=moments.mean(dim=(0, 2, 3, 4)).tolist(),
            latents_std=moments.std(dim=(0, 2, 3, 4)).clamp_min(1e-3).tolist(),
        )
    return vae


def random_text_encoder(
    tokenizer: Qwen2Tokenizer, seed: int, hidden: int, scale: float
) -> Qwen2_5_VLForConditionalGeneration:
    """A text encoder of the tiny sizes; `scale` is the standard deviation of its weights."""
    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            "initializer_range": scale,
            "bos_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [1],
            "window_size": 112,
        },
        **special_token_ids(tokenizer),
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def special_token_ids(tokenizer: Qwen2Tokenizer) -> dict[str, int]:
    """The ids by which a Qwen vision-language model's configuration knows its picture tokens."""
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def new_processor(tokenizer: Qwen2Tokenizer, max_picture_tokens: int) -> Qwen2VLProcessor:
    """A processor that gives a picture between one token and so many."""
    size = {"shortest_edge": 28 * 28, "longest_edge": max_picture_tokens * 28 * 28}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
    )
