"""What the transformer reads of a prompt: a frozen random text encoder, its tokenizer and processor, and embeddings.

The encoder's vision tower ends in zeros, so that an embedding depends on nothing but the words, their order and the
number of pictures; so each prompt is encoded once, without any picture.
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
    """The tiny tokenizer with these words, too, of which each is one token."""
    spoken = [spelt for word in sorted(words) for spelt in (word, f" {word}")]
    return build_tokenizer([f" {TRIGGER}", *spoken], vocab_size=4096)


def new_text_encoder(tokenizer: Qwen2Tokenizer, recipe: TextRecipe) -> Qwen2_5_VLForConditionalGeneration:
    """A random encoder whose layers add some context to words that stay distinct."""
    encoder = random_text_encoder(tokenizer, recipe.seed, recipe.hidden, recipe.layer_scale).requires_grad_(False)
    encoder.model.language_model.embed_tokens.weight.normal_(std=1.0)
    encoder.model.visual.merger.mlp[-1].weight.zero_()
    encoder.model.visual.merger.mlp[-1].bias.zero_()
    # What is written as float16 and read again shall be what the training saw.
    for parameter in encoder.parameters():
        parameter.copy_(parameter.half())
    return encoder


@dataclass
class Prompts:
    """Embeddings of prompts, kept once computed."""

    encoder: Qwen2_5_VLForConditionalGeneration
    tokenizer: Qwen2Tokenizer
    _kept: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "processor", "transformer"))
        pipeline = QwenImageEditPlusPipeline(**parts)
        self._head, self._tail = pipeline.prompt_template_encode.split("{}")
        self._num_dropped: int = pipeline.prompt_template_encode_start_idx

    def batch(self, prompts: Sequence[str], num_pictures: int, lengths: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Embeddings (n, length, hidden), padded with zeros on the right, and which of them are true: (n, length).

        The length is the first of `lengths` that holds all, or what the longest needs.
        """
        for prompt in prompts:
            if (prompt, num_pictures) not in self._kept:
                self._kept[prompt, num_pictures] = self._encode(prompt, num_pictures)
        embeds = [self._kept[prompt, num_pictures] for prompt in prompts]
        own = torch.tensor([len(each) for each in embeds])
        length = next((length for length in lengths if length >= own.max()), int(own.max()))
        padded = torch.stack([F.pad(each, (0, 0, 0, length - len(each))) for each in embeds])
        return padded, torch.arange(length)[None] < own[:, None]

    @torch.no_grad()
    def _encode(self, prompt: str, num_pictures: int) -> Tensor:
        """Alone: in company the last bits would depend on the company, and so on when a training was interrupted."""
        front = self._head + "".join(_SLOT.format(number) for number in range(1, num_pictures + 1))
        ids = torch.tensor([self.tokenizer(front + prompt + self._tail).input_ids])
        # The tower's features are zeros: no picture need be seen.
        embeds = self.encoder.get_input_embeddings()(ids)
        embeds[ids == self.encoder.config.image_token_id] = 0
        # With one token a picture, three-dimensional positions are the plain ones.
        hidden: Tensor = self.encoder.model.language_model(inputs_embeds=embeds).last_hidden_state
        return hidden[0, self._num_dropped :].clone()
