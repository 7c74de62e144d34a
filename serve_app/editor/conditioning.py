"""What the transformer reads: a prompt and its pictures, as Qwen2.5-VL understands them."""

import torch
from transformers import BatchFeature, Qwen2_5_VLForConditionalGeneration, Qwen2VLProcessor

from serve_app.edits.request import Pixels
from serve_app.errors import InvalidInput


class PromptEncoder:
    """Qwen2.5-VL's last hidden states for a prompt with pictures.

    Args:
        template: the edit template with `{}` where pictures and prompt go (diffusers' `prompt_template_encode`).
        num_template_tokens: how many tokens in front the transformer never sees.
        max_tokens: the transformer's rotary table ends somewhere; longer prompts are refused.
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

    def encode(self, prompt: str, pictures: list[Pixels]) -> torch.Tensor:
        """Embeddings of shape (num_tokens, hidden) in the encoder's dtype.

        Raises:
            InvalidInput: the prompt has more tokens than the model can place.
        """
        inputs = self.tokenize(prompt, pictures)
        num_tokens = inputs["input_ids"].shape[1] - self._num_template_tokens
        if num_tokens > self._max_tokens:
            raise InvalidInput(
                f"The prompt has {num_tokens} tokens with its pictures; at most {self._max_tokens} fit. Shorten it.",
                "prompt",
            )
        # The whole of `inputs`: without mm_token_type_ids the encoder silently uses 1-D positions.
        hidden: torch.Tensor = self._model(**inputs.to(self._model.device)).last_hidden_state
        return hidden[0, self._num_template_tokens :]

    def tokenize(self, prompt: str, pictures: list[Pixels]) -> BatchFeature:
        """The encoder's inputs: what the processor gives for template and prompt, except that special tokens in the
        user's prompt stay plain text. The prompt stands between two special tokens, where the tokenizer splits
        anyway, so that cutting it apart changes nothing else.
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


def picture_slots(num_image_tokens: list[int]) -> str:
    """The text that stands for the pictures: numbered, each with its own count of `<|image_pad|>`."""
    return "".join(
        f"Picture {number}: <|vision_start|>{'<|image_pad|>' * count}<|vision_end|>"
        for number, count in enumerate(num_image_tokens, start=1)
    )
