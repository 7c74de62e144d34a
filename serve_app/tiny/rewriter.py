"""The tiny rewriter: a Qwen3-VL folder with random, deterministic weights."""

from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from serve_app.tiny.edit_model import special_token_ids

_HIDDEN = 64

# Qwen's chat format, as far as a user message of pictures and text needs it.
_CHAT_TEMPLATE = """
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'text' -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}{{ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""


def save_rewriter(folder: Path, tokenizer: Qwen2Tokenizer) -> None:
    """Write model, processor and generation settings."""
    random_rewriter(tokenizer).save_pretrained(folder, safe_serialization=True)
    rewriter_processor(tokenizer).save_pretrained(folder)


def random_rewriter(tokenizer: Qwen2Tokenizer, num_layers: int = 2) -> Qwen3VLForConditionalGeneration:
    """A model of the tiny sizes."""
    torch.manual_seed(21)
    model = Qwen3VLForConditionalGeneration(_config(tokenizer, num_layers)).eval()
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model


def rewriter_processor(tokenizer: Qwen2Tokenizer) -> Qwen3VLProcessor:
    """Its processor, of which the service sets the pictures' size."""
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=16, size={"shortest_edge": 32 * 32, "longest_edge": 16 * 32 * 32}
        ),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=_CHAT_TEMPLATE,
    )


def _config(tokenizer: Qwen2Tokenizer, num_layers: int) -> Qwen3VLConfig:
    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": _HIDDEN,
            "intermediate_size": 128,
            "num_hidden_layers": num_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2, 3, 3],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": _HIDDEN,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        **special_token_ids(tokenizer),
    )
