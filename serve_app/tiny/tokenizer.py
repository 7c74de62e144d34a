"""A byte-level BPE tokenizer of the Qwen2 class, small, that cuts the edit template as the real one does."""

import json
from collections.abc import Sequence

from diffusers import QwenImageEditPlusPipeline
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from serve_app.edits.camera import AZIMUTH_WORDS, DISTANCE_WORDS, ELEVATION_WORDS, TRIGGER

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Words of ordinary edits, so that a prompt is a few dozen tokens and not one per byte.
_COMMON_WORDS = (
    "Picture 1: add remove replace change make turn the a an of to in on with and from into image background sky "
    "sunset night day snow rain mountain sea city street person hat red green blue yellow warm cold light shadow "
    "style colour color palette apply artistic texture sharp soft contrast view modern sofa table room"
)


def build_tokenizer(more: Sequence[str] = (), vocab_size: int = 2048) -> Qwen2Tokenizer:
    """Train the tokenizer on the edit template, and on `more` text, until each of the template's words is one token.

    The real tokenizer cuts the template's head into 64 tokens, of which each is one pre-token; with every
    pre-token merged, this one does too, so that the pipeline's rule "drop the first 64" holds here as there.
    """
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator([*_corpus(), *more], trainer)
    return _as_qwen(trained)


def _corpus() -> list[str]:
    # The template is an attribute that the pipeline sets when it is made, whatever it is made of.
    parts = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "processor", "transformer"))
    plain: str = QwenImageEditPlusPipeline(**parts).prompt_template_encode
    for token in SPECIAL_TOKENS:
        plain = plain.replace(token, "\n")
    camera = [*AZIMUTH_WORDS.values(), *ELEVATION_WORDS.values(), *DISTANCE_WORDS.values()]
    return [plain, TRIGGER, _COMMON_WORDS, *camera, *(f" {words}" for words in camera)]


def _as_qwen(trained: Tokenizer) -> Qwen2Tokenizer:
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=merges, eos_token="<|im_end|>", model_max_length=8192)
    # `additional_special_tokens=` is dropped in silence where `extra_special_tokens=` exists: add them by hand.
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer
