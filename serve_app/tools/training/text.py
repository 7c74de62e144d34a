"""The text embeddings of the transformer: a frozen random text encoder, its tokenizer, and encoded prompts.

The encoder's vision tower outputs zeros, so an embedding depends only on the words, their order and the number of
pictures, and each prompt is encoded once, without pictures.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import QwenImageEditPlusPipeline
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from serve_app.edits.camera import TRIGGER
from serve_app.tiny.edit_model import random_text_encoder
from serve_app.tiny.tokenizer import build_tokenizer
from serve_app.tools.training.phrases import WORDS
from serve_app.tools.training.recipe import TextRecipe

_SLOT = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"


def new_tokenizer(words: Iterable[str] = WORDS) -> Qwen2Tokenizer:
    """The tiny tokenizer, extended by these words, each of which is one token."""
    spellings = [each for word in sorted(words) for each in (word, f" {word}")]
    return build_tokenizer([f" {TRIGGER}", *spellings], vocab_size=4096)


def new_text_encoder(tokenizer: Qwen2Tokenizer, recipe: TextRecipe) -> Qwen2_5_VLForConditionalGeneration:
    """A random encoder whose layers add context to the words, which stay distinct."""
    encoder = random_text_encoder(tokenizer, recipe.seed, recipe.hidden, recipe.layer_scale).requires_grad_(False)
    encoder.model.language_model.embed_tokens.weight.normal_(std=1.0)
    encoder.model.visual.merger.mlp[-1].weight.zero_()
    encoder.model.visual.merger.mlp[-1].bias.zero_()
    # Rounded, so that the exported float16 encoder equals the one in training.
    for parameter in encoder.parameters():
        parameter.copy_(parameter.half())
    return encoder


@dataclass
class Prompts:
    """Embeddings of prompts, cached."""

    encoder: Qwen2_5_VLForConditionalGeneration
    tokenizer: Qwen2Tokenizer
    _cache: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "processor", "transformer"))
        pipeline = QwenImageEditPlusPipeline(**parts)
        self._head, self._tail = pipeline.prompt_template_encode.split("{}")
        self._num_dropped: int = pipeline.prompt_template_encode_start_idx

    def batch(self, prompts: Sequence[str], num_pictures: int, lengths: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Embeddings (n, length, hidden), padded with zeros at the end, and their mask (n, length), False for padding.

        The length is the first of `lengths` that fits all prompts, or that of the longest prompt if none does.
        """
        for prompt in prompts:
            if (prompt, num_pictures) not in self._cache:
                self._cache[prompt, num_pictures] = self._encode(prompt, num_pictures)
        embeds = [self._cache[prompt, num_pictures] for prompt in prompts]
        own = torch.tensor([len(each) for each in embeds])
        length = next((length for length in lengths if length >= own.max()), int(own.max()))
        padded = torch.stack([F.pad(each, (0, 0, 0, length - len(each))) for each in embeds])
        return padded, torch.arange(length)[None] < own[:, None]

    @torch.no_grad()
    def _encode(self, prompt: str, num_pictures: int) -> Tensor:
        """Encode one prompt: in a batch, its last bits would depend on the others, and a resumed run would differ."""
        front = self._head + "".join(_SLOT.format(number) for number in range(1, num_pictures + 1))
        ids = torch.tensor([self.tokenizer(front + prompt + self._tail).input_ids])
        # The vision tower's features are zeros, so no picture is needed.
        embeds = self.encoder.get_input_embeddings()(ids)
        embeds[ids == self.encoder.config.image_token_id] = 0
        # With one token per picture, the three-dimensional positions equal the sequential ones.
        hidden: Tensor = self.encoder.model.language_model(inputs_embeds=embeds).last_hidden_state
        return hidden[0, self._num_dropped :].clone()
