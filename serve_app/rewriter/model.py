"""Qwen3-VL as a rewriter of instructions."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from PIL import Image
from torch.nn.functional import pad
from transformers import (
    AutoProcessor,
    BatchFeature,
    Qwen3VLForConditionalGeneration,
    StoppingCriteria,
    StoppingCriteriaList,
)

from serve_app.config import RewriterSettings
from serve_app.edits.request import Pictures, Rewrite
from serve_app.errors import CheckpointError
from serve_app.rewriter.instructions import conversation, parse_answer
from serve_app.rewriter.prefix import SharedPrefix
from serve_app.weights.gpu_memory import prepare_gpu
from serve_app.weights.locate import MODEL_FILES, locate

_PICTURE_INPUTS = ("pixel_values", "image_grid_thw")
"""Of all pictures one after another; the other inputs have a row for each prompt."""

_BLANK = Image.new("RGB", (64, 64))


@dataclass(frozen=True, eq=False)
class Row:
    """One prompt as the model reads it.

    Attributes:
        inputs: the processor's tensors on the CPU; of shape (1, tokens), but for the pictures'.
        is_wanted: whether somebody still waits for the answer. If not, the row ends at its next token.
    """

    inputs: BatchFeature
    is_wanted: Callable[[], bool]

    @property
    def num_tokens(self) -> int:
        return int(self.inputs["input_ids"].shape[1])


class RewriterModel:
    """Model and processor on their device. Not thread-safe: one thread owns it.

    Args:
        gpu_share: part of a GPU whose memory this process may use.

    Raises:
        CheckpointError: weights are missing or of another kind, or the device is not there.
        ConfigError: as `prepare_gpu`.
    """

    def __init__(self, settings: RewriterSettings, gpu_share: float = 1.0) -> None:
        if settings.source is None:
            raise CheckpointError("rewriter.source is not set: there are no weights to load.")
        if settings.device == "cuda":
            if not torch.cuda.is_available():
                raise CheckpointError("rewriter.device is cuda, but torch sees no CUDA device on this node.")
            prepare_gpu(gpu_share)
        folder = locate(settings.source, MODEL_FILES)
        try:
            self._processor = AutoProcessor.from_pretrained(folder)
            self._model = Qwen3VLForConditionalGeneration.from_pretrained(
                folder, dtype=getattr(torch, settings.dtype), use_safetensors=True
            )
        except (OSError, ValueError) as problem:
            raise CheckpointError(f"{folder} is not a Qwen3-VL model folder: {problem}") from problem
        self._model.to(settings.device).eval().requires_grad_(False)
        # The default allows 16.7 megapixels a picture, far more tokens than an instruction needs.
        self._processor.image_processor.size = {
            "longest_edge": settings.max_picture_px,
            "shortest_edge": settings.min_picture_px,
        }
        self._settings = settings
        # Each prompt goes on with a picture or with the wish.
        first = [self._tokenized("", pictures)["input_ids"][0].tolist() for pictures in ((), (_BLANK,))]
        common = takewhile(lambda pair: pair[0] == pair[1], zip(*first, strict=False))
        self._prefix = SharedPrefix(self._model, [token for token, _ in common])

    def prepare(self, prompt: str, pictures: Pictures, is_wanted: Callable[[], bool] = lambda: True) -> Row:
        """Tokenize a prompt and its pictures."""
        inputs = self._tokenized(prompt, [Image.fromarray(picture.vae_pixels) for picture in pictures])
        prefix = self._prefix.tokens
        if inputs["input_ids"][0, : len(prefix)].tolist() != prefix:
            raise ValueError("the chat template does not begin this prompt with the same tokens as others")
        return Row(inputs, is_wanted)

    def _tokenized(self, prompt: str, pictures: Sequence[Image.Image]) -> BatchFeature:
        return self._processor.apply_chat_template(
            conversation(prompt, [{"type": "image", "image": picture} for picture in pictures]),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def fits(self, rows: Sequence[Row]) -> bool:
        """Whether these rows may run together."""
        longest = max(row.num_tokens for row in rows) + self._settings.max_new_tokens
        is_short = len(rows) * longest <= self._settings.max_batch_tokens
        return len(rows) == 1 or (is_short and len(rows) <= self._settings.max_batch_size)

    def rewrite(self, rows: Sequence[Row]) -> list[Rewrite]:
        """For each row a better instruction, or the reason why there is none. Decoding is greedy, so equal inputs give
        equal answers; it is bounded in tokens and time."""
        began = time.monotonic()
        answers = self.generate(rows)
        if time.monotonic() - began > self._settings.timeout_s:
            return [Rewrite(None, f"the rewriter took longer than {self._settings.timeout_s:g} s")] * len(rows)
        return [parse_answer(answer) for answer in answers]

    @torch.inference_mode()
    def generate(self, rows: Sequence[Row]) -> list[str]:
        """The model's raw answers, each up to its own end token."""
        inputs = self._joined(rows).to(self._model.device)
        width, max_new_tokens = inputs["input_ids"].shape[1], self._settings.max_new_tokens
        # What the model knows of the pictures' positions is the last batch's.
        self._model.model.rope_deltas = None
        # All of `inputs`: Qwen3-VL needs mm_token_type_ids for its positions.
        tokens = self._model.generate(
            **inputs,
            past_key_values=self._prefix.cache(len(rows), width + max_new_tokens),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=max_new_tokens,
            max_time=self._settings.timeout_s,
            stopping_criteria=StoppingCriteriaList([_Unwanted(rows)]),
            disable_compile=True,
        )
        answers: list[str] = self._processor.batch_decode(tokens[:, width:], skip_special_tokens=True)
        return answers

    def _joined(self, rows: Sequence[Row]) -> BatchFeature:
        """One batch of all rows, padded to the longest one: after the prefix, so that all answers begin at one
        position."""
        start, width = len(self._prefix.tokens), max(row.num_tokens for row in rows)
        fills = {"input_ids": self._processor.tokenizer.pad_token_id}
        joined = {}
        for name in dict.fromkeys(name for row in rows for name in row.inputs):
            tensors = [row.inputs[name] for row in rows if name in row.inputs]
            if name not in _PICTURE_INPUTS:
                tensors = [_padded(each, start, width, fills.get(name, 0)) for each in tensors]
            joined[name] = torch.cat(tensors)
        return BatchFeature(joined)


def _padded(row: torch.Tensor, start: int, width: int, fill: int) -> torch.Tensor:
    return torch.cat([row[:, :start], pad(row[:, start:], (width - row.shape[1], 0), value=fill)], dim=1)


# transformers leaves it untyped where torch is not imported first.
class _Unwanted(StoppingCriteria):  # type: ignore[misc]
    """Ends the rows that nobody waits for."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        return torch.tensor([not row.is_wanted() for row in self._rows], device=input_ids.device)
