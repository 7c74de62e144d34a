"""Qwen3-VL as a rewriter of instructions."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat, takewhile

import torch
from PIL import Image
from transformers import AutoProcessor, BatchFeature, Qwen3VLForConditionalGeneration

from serve_app.config import RewriterSettings
from serve_app.edits.request import Pictures, Rewrite
from serve_app.errors import CheckpointError
from serve_app.rewriter.decoding import GreedyDecoder
from serve_app.rewriter.instructions import conversation, parse_answer
from serve_app.weights.gpu_memory import prepare_gpu
from serve_app.weights.locate import MODEL_FILES, locate

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
        self._prefix = [token for token, _ in common]
        self._decoder = GreedyDecoder(self._model, self._prefix, compiled=settings.compile)
        if settings.compile:
            self._compile()

    def _compile(self) -> None:
        """Rewrite one prompt and several: the decoder has a graph for each of these."""
        prompt = self._tokenized("", (_BLANK,))
        for prompts in ([prompt], [prompt, prompt]):
            self._decoder.answers(prompts, 2, partial(repeat, False, len(prompts)))

    def prepare(self, prompt: str, pictures: Pictures, is_wanted: Callable[[], bool] = lambda: True) -> Row:
        """Tokenize a prompt and its pictures."""
        inputs = self._tokenized(prompt, [Image.fromarray(picture.vae_pixels) for picture in pictures])
        if inputs["input_ids"][0, : len(self._prefix)].tolist() != self._prefix:
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

    def generate(self, rows: Sequence[Row]) -> list[str]:
        """The model's raw answers, each up to its own end token."""
        until = time.monotonic() + self._settings.timeout_s

        def has_ended() -> list[bool]:
            is_late = time.monotonic() > until
            return [is_late or not row.is_wanted() for row in rows]

        tokens = self._decoder.answers([row.inputs for row in rows], self._settings.max_new_tokens, has_ended)
        answers: list[str] = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return answers
