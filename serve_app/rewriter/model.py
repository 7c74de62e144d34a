"""Qwen3-VL as a rewriter of instructions."""

import time

import torch
from PIL import Image
from transformers import AutoProcessor, BatchFeature, Qwen3VLForConditionalGeneration

from serve_app.config import RewriterSettings
from serve_app.edits.request import Pictures, Rewrite, RewriteJob
from serve_app.errors import CheckpointError
from serve_app.rewriter.instructions import INSTRUCTIONS, parse_answer, user_message
from serve_app.weights.gpu_memory import prepare_gpu
from serve_app.weights.locate import MODEL_FILES, locate


class RewriterModel:
    """Model and processor on their device. Not thread-safe: one thread owns it.

    Args:
        gpu_share: part of a GPU whose memory this process may use.

    Raises:
        CheckpointError: weights are missing or of another kind, or the device is not there.
        ConfigError: as `prepare_gpu`.
    """

    def __init__(self, settings: RewriterSettings, gpu_share: float = 1.0) -> None:
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

    def rewrite(self, job: RewriteJob, pictures: Pictures) -> Rewrite:
        """A better instruction, or the reason why there is none. Greedy decoding, so equal inputs give equal answers;
        bounded in tokens and time."""
        began = time.monotonic()
        answer = self.generate(job.prompt, pictures)
        if time.monotonic() - began > self._settings.timeout_s:
            return Rewrite(None, f"the rewriter took longer than {self._settings.timeout_s:g} s")
        return parse_answer(answer)

    @torch.inference_mode()
    def generate(self, prompt: str, pictures: Pictures) -> str:
        """The model's raw answer."""
        inputs = self._inputs(prompt, pictures).to(self._model.device)
        # All of `inputs`: Qwen3-VL needs mm_token_type_ids for its positions.
        tokens = self._model.generate(
            **inputs,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=self._settings.max_new_tokens,
            max_time=self._settings.timeout_s,
        )
        new_tokens = tokens[:, inputs["input_ids"].shape[1] :]
        answer: str = self._processor.batch_decode(new_tokens, skip_special_tokens=True)[0]
        return answer

    def _inputs(self, prompt: str, pictures: Pictures) -> BatchFeature:
        return self._processor.apply_chat_template(
            self._messages(prompt, pictures),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def _messages(self, prompt: str, pictures: Pictures) -> list[dict[str, object]]:
        content: list[dict[str, object]] = []
        for number, picture in enumerate(pictures, start=1):
            content.append({"type": "text", "text": f"Picture {number}: "})
            content.append({"type": "image", "image": Image.fromarray(picture.vae_pixels)})
        content.append({"type": "text", "text": user_message(prompt)})
        return [
            {"role": "system", "content": [{"type": "text", "text": INSTRUCTIONS}]},
            {"role": "user", "content": content},
        ]
