"""Encodes a prompt and its pictures by Qwen2.5-VL for the transformer."""

from collections.abc import Sequence

import torch
from transformers import BatchFeature, Qwen2_5_VLForConditionalGeneration, Qwen2VLProcessor

from serve_app.edits.request import Pixels
from serve_app.errors import InvalidInput

_PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")


class PromptEncoder:
    """Qwen2.5-VL's last hidden states for prompts with pictures; its lm_head is never run.

    Args:
        template: the edit template with `{}` where pictures and prompt go (diffusers' `prompt_template_encode`).
        num_template_tokens: leading tokens whose embeddings the transformer does not get.
        max_tokens: limit of a prompt, set by the size of the transformer's rotary table.
    """

    def __init__(
        self,
        text_encoder: Qwen2_5_VLForConditionalGeneration,
        processor: Qwen2VLProcessor,
        template: str,
        num_template_tokens: int,
        max_tokens: int,
    ) -> None:
        self._model = text_encoder.model
        self._processor = processor
        self._head, self._tail = template.split("{}")
        self._num_template_tokens = num_template_tokens
        self._max_tokens = max_tokens

    @property
    def device(self) -> torch.device:
        device: torch.device = self._model.device
        return device

    def tokenize(self, prompt: str, pictures: list[Pixels]) -> BatchFeature:
        """The encoder's inputs, on the CPU: those of the processor for template and prompt, except that special tokens
        in the user's prompt stay plain text. The tokenizer splits at the special tokens around the prompt anyway, so
        tokenizing the prompt on its own changes nothing else.

        Raises:
            InvalidInput: the prompt has more than `max_tokens` tokens.
        """
        tokenizer = self._processor.tokenizer
        vision = self._processor.image_processor(images=pictures, return_tensors="pt")
        merged = self._processor.image_processor.merge_size**2
        slots = picture_slots([int(grid.prod()) // merged for grid in vision["image_grid_thw"]])
        ids: list[int] = [
            *tokenizer(self._head + slots).input_ids,
            *tokenizer(prompt, split_special_tokens=True).input_ids,
            *tokenizer(self._tail).input_ids,
        ]
        self._check_length(len(ids) - self._num_template_tokens)
        input_ids = torch.tensor([ids])
        is_picture = input_ids == self._processor.image_token_id
        return BatchFeature(
            {
                **vision,
                "input_ids": input_ids,
                "attention_mask": torch.ones_like(input_ids),
                "mm_token_type_ids": is_picture.long(),
            }
        )

    def encode(self, inputs: Sequence[BatchFeature]) -> list[torch.Tensor]:
        """Embeddings of shape (num_tokens, hidden) in the encoder's dtype, for all prompts in one batch."""
        lengths = [each["input_ids"].shape[1] for each in inputs]
        # A copy, since `to` moves a BatchFeature in place, and its owner would keep the device's memory.
        batch = BatchFeature(dict(inputs[0])) if len(inputs) == 1 else _padded(inputs, max(lengths))
        # All inputs are passed: without mm_token_type_ids the encoder silently uses 1-D positions.
        # Nothing is generated, so keys and values need not be kept.
        hidden = self._model(**batch.to(self.device), use_cache=False).last_hidden_state
        # Cloned, so that the cache does not keep the whole padded batch alive.
        return [row[self._num_template_tokens : length].clone() for row, length in zip(hidden, lengths, strict=True)]

    def _check_length(self, num_tokens: int) -> None:
        if num_tokens > self._max_tokens:
            raise InvalidInput(
                f"The prompt has {num_tokens} tokens with its pictures; at most {self._max_tokens} fit. Shorten it.",
                "prompt",
            )


def _padded(inputs: Sequence[BatchFeature], length: int) -> BatchFeature:
    """Several prompts' inputs as one batch, padded on the right: no token of a causal model attends to the padding."""
    per_token = {
        name: torch.cat([torch.nn.functional.pad(each[name], (0, length - each[name].shape[1])) for each in inputs])
        for name in _PER_TOKEN
    }
    vision = {name: torch.cat([each[name] for each in inputs]) for name in ("pixel_values", "image_grid_thw")}
    return BatchFeature({**vision, **per_token})


def picture_slots(num_image_tokens: list[int]) -> str:
    """The pictures' placeholder text: numbered, each with as many `<|image_pad|>` as it has tokens."""
    return "".join(
        f"Picture {number}: <|vision_start|>{'<|image_pad|>' * count}<|vision_end|>"
        for number, count in enumerate(num_image_tokens, start=1)
    )
