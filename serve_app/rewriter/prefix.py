"""The tokens with which every prompt begins, the instructions, computed once."""

import torch
from transformers import Cache, DynamicCache, Qwen3VLForConditionalGeneration, StaticCache


class SharedPrefix:
    """Keys and values of the first tokens of all prompts.

    Attributes:
        tokens: their ids.
    """

    @torch.inference_mode()
    def __init__(self, model: Qwen3VLForConditionalGeneration, tokens: list[int]) -> None:
        self.tokens = tokens
        self._config = model.config.get_text_config()
        computed = model(input_ids=torch.tensor([tokens], device=model.device), use_cache=True).past_key_values
        self._layers = [(layer.keys, layer.values) for layer in computed.layers]

    def cache(self, num_rows: int, max_tokens: int) -> Cache:
        """A cache that holds the prefix for each row.

        Args:
            max_tokens: of a row, its answer included.
        """
        # One that grows copies itself at each token, which takes long for a batch. For one row, it is the faster one.
        cache = DynamicCache() if num_rows == 1 else StaticCache(self._config, max_cache_len=max_tokens)
        for index, (keys, values) in enumerate(self._layers):
            cache.update(keys.expand(num_rows, -1, -1, -1), values.expand(num_rows, -1, -1, -1), index)
        return cache
