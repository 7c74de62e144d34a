"""Greedy decoding of several prompts at once.

transformers' `generate` prepares each step anew: masks, positions, arguments. That takes longer than the step of a
small model, so the loop here prepares them once. The model and its caches are transformers' own.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import BatchFeature, Cache, DynamicCache, Qwen3VLForConditionalGeneration, StaticCache

_PICTURE_INPUTS = ("pixel_values", "image_grid_thw")
"""Of all pictures one after another; the other inputs have a row for each prompt."""


@dataclass
class _State:
    """A batch between two steps.

    Attributes:
        cache: keys and values of all tokens so far.
        mask: what a step adds to the attention's scores, of shape (rows, 1, 1, capacity of the cache): 0 for tokens of
            the row, minus infinity for padding and for places that are free. None: one row, whose cache has neither.
        position: of the next token, of shape (1, rows, 1).
        num_tokens: of a row, with padding.
        logits: for the next token, of shape (rows, vocabulary).
    """

    cache: Cache
    mask: torch.Tensor | None
    position: torch.Tensor
    num_tokens: int
    logits: torch.Tensor


class GreedyDecoder:
    """Answers prompts that all begin with the same tokens, which are computed once.

    Args:
        prefix: these tokens' ids. All stand for text.
        compiled: compile the step of one token. There are two graphs: for one row, and for any other number.
    """

    @torch.inference_mode()
    def __init__(self, model: Qwen3VLForConditionalGeneration, prefix: list[int], *, compiled: bool = False) -> None:
        self._model = model
        self._language_model: Any = model.model.language_model
        if compiled:
            self._language_model = torch.compile(model.model.language_model, dynamic=True, fullgraph=True)
        self._is_compiled = compiled
        self._config = model.config.get_text_config()
        self._num_prefix = len(prefix)
        computed = model(input_ids=torch.tensor([prefix], device=model.device), use_cache=True).past_key_values
        self._layers = [(layer.keys, layer.values) for layer in computed.layers]
        ends = model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])

    @torch.inference_mode()
    def answers(
        self, prompts: Sequence[BatchFeature], max_new_tokens: int, has_ended: Callable[[], Iterable[bool]]
    ) -> list[list[int]]:
        """The ids of each prompt's answer, without its end token.

        Args:
            prompts: from the processor, on the CPU: tensors of shape (1, tokens), but for the pictures'.
            has_ended: returns, after each token, which answers end there.
        """
        state = self._prefilled(prompts, max_new_tokens)
        is_open = [True] * len(prompts)
        answers: list[list[int]] = [[] for _ in prompts]
        for number in range(max_new_tokens):
            tokens = state.logits.argmax(-1)
            for row, token in enumerate(tokens.tolist()):  # waits for the device, once for each token
                is_open[row] = is_open[row] and token not in self._ends
                if is_open[row]:
                    answers[row].append(token)
            is_open = [each and not ends for each, ends in zip(is_open, has_ended(), strict=True)]
            if number + 1 == max_new_tokens or not any(is_open):
                break
            self._step(state, tokens)
        return answers

    def _prefilled(self, prompts: Sequence[BatchFeature], max_new_tokens: int) -> _State:
        inputs = self._joined(prompts)
        # The prefix is text, so that positions and padding of what follows do not depend on it, but for their start.
        positions, deltas = self._model.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs.get("image_grid_thw"),
            attention_mask=inputs["attention_mask"],
        )
        mask = pad(inputs["attention_mask"], (self._num_prefix, 0), value=1)
        width = mask.shape[1]
        cache = self._cache(len(prompts), width + max_new_tokens)
        inputs = inputs.to(self._model.device)
        filled = self._model(
            input_ids=inputs["input_ids"],
            attention_mask=mask.to(self._model.device),
            position_ids=(positions + self._num_prefix).to(self._model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **{name: inputs[name] for name in _PICTURE_INPUTS if name in inputs},
        )
        return _State(
            cache=cache,
            mask=None if isinstance(cache, DynamicCache) else self._step_mask(mask, max_new_tokens),
            position=(mask.sum(1, keepdim=True) + deltas)[None].to(self._model.device),
            num_tokens=width,
            logits=filled.logits[:, -1],
        )

    def _step(self, state: _State, tokens: torch.Tensor) -> None:
        """Add one token to each row."""
        if state.mask is not None:
            state.mask[..., state.num_tokens] = 0
        hidden = self._language_model(
            inputs_embeds=self._model.get_input_embeddings()(tokens[:, None]),
            attention_mask=state.mask,
            position_ids=state.position.expand(3, -1, -1),
            past_key_values=state.cache,
            use_cache=True,
        ).last_hidden_state
        state.logits = self._model.lm_head(hidden[:, -1])
        state.position = state.position + 1
        state.num_tokens += 1

    def _step_mask(self, mask: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
        is_hidden = pad(mask == 0, (0, max_new_tokens), value=True)
        added = torch.zeros(is_hidden.shape, dtype=self._model.dtype).masked_fill(is_hidden, float("-inf"))
        return added[:, None, None].to(self._model.device)

    def _joined(self, prompts: Sequence[BatchFeature]) -> BatchFeature:
        """What follows the prefix, of all prompts, padded on its left to the longest, so that all answers begin at one
        place. Padding is hidden from attention, so its token does not matter."""
        width = max(prompt["input_ids"].shape[1] for prompt in prompts) - self._num_prefix
        joined = {}
        for name in dict.fromkeys(name for prompt in prompts for name in prompt):
            tensors = [prompt[name] for prompt in prompts if name in prompt]
            if name not in _PICTURE_INPUTS:
                rows = [each[:, self._num_prefix :] for each in tensors]
                tensors = [pad(row, (width - row.shape[1], 0)) for row in rows]
            joined[name] = torch.cat(tensors)
        return BatchFeature(joined)

    def _cache(self, num_rows: int, max_tokens: int) -> Cache:
        """A cache that holds the prefix for each row.

        Args:
            max_tokens: of a row, its answer included.
        """
        # One that grows copies itself at each token, which takes long for a batch. For one row it is the faster one, as
        # attention needs no mask; compiled code needs a constant size.
        is_growing = num_rows == 1 and not self._is_compiled
        cache = DynamicCache() if is_growing else StaticCache(self._config, max_cache_len=max_tokens)
        for index, (keys, values) in enumerate(self._layers):
            cache.update(keys.expand(num_rows, -1, -1, -1), values.expand(num_rows, -1, -1, -1), index)
        return cache
