"""The tiny rewriter's training: a Qwen3-VL that answers vague wishes with clear ones, in the JSON that it is asked for.

Its vision tower ends in zeros, as the text encoder's does: what it reads is the words and the number of pictures. All
conversations of a batch share one copy of the long instructions that each begins with: they lie behind it in one row,
and a mask keeps them apart.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration

from serve_app.rewriter.instructions import INSTRUCTIONS, user_message
from serve_app.tiny.rewriter import random_rewriter, rewriter_processor
from serve_app.tiny.tokenizer import build_tokenizer
from serve_app.tools.training.loop import Fit, Loss, run_fit
from serve_app.tools.training.phrases import WORDS
from serve_app.tools.training.recipe import RewriterRecipe
from serve_app.tools.training.vague import VAGUE, VAGUE_OF_TWO, Rewriting, random_rewriting, vague_rewritings


def new_rewriter_tokenizer() -> Qwen2Tokenizer:
    """One in which each word of instructions, wishes and answers is one token."""
    vague = [wish for wishes in (*VAGUE.values(), *VAGUE_OF_TWO.values()) for wish in wishes]
    words = sorted({*WORDS, *" ".join(vague).split(), "please", "can", "you"})
    spoken = [spelt for word in words for spelt in (word, f" {word}", word.capitalize(), f" {word.capitalize()}")]
    texts = [INSTRUCTIONS, user_message("wish"), answer_to("wish"), "\nPicture 1: \nPicture 2: ", "user\nassistant\n"]
    return build_tokenizer([*texts, *spoken], vocab_size=4096)


def new_rewriter(tokenizer: Qwen2Tokenizer, recipe: RewriterRecipe) -> Qwen3VLForConditionalGeneration:
    """An untrained model whose pictures are zeros."""
    model = random_rewriter(tokenizer, recipe.num_layers)
    with torch.no_grad():
        for merger in (model.model.visual.merger, *model.model.visual.deepstack_merger_list):
            merger.linear_fc2.weight.zero_()
            merger.linear_fc2.bias.zero_()
    return model


def train_rewriter(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: Qwen2Tokenizer,
    recipe: RewriterRecipe,
    folder: Path,
    max_seconds: float = float("inf"),
) -> bool:
    """Train it, or go on."""
    parameters = {name: each for name, each in model.named_parameters() if "visual" not in name}
    fit = Fit("rewriter", parameters, recipe.fit, folder)
    talks = Talks(tokenizer)
    return run_fit(fit, rewriter_loss(model, talks, recipe), lambda: scores(model, talks), max_seconds)


def rewriter_loss(model: Qwen3VLForConditionalGeneration, talks: "Talks", recipe: RewriterRecipe) -> Loss:
    """Cross entropy of the answers' tokens."""

    def loss_of(rng: np.random.Generator) -> Tensor:
        logits, wanted = talks.answers(model, [random_rewriting(rng) for _ in range(recipe.fit.batch)])
        return F.cross_entropy(logits, wanted)

    return loss_of


@torch.no_grad()
def scores(model: Qwen3VLForConditionalGeneration, talks: "Talks", num_clear: int = 200) -> Mapping[str, float]:
    """Shares of wishes that are answered right to the last token: the table's, and new ones that are clear or not."""
    rng = np.random.default_rng(7)
    fresh = [random_rewriting(rng) for _ in range(num_clear)]
    return {name: talks.share_right(model, found) for name, found in (("vague", vague_rewritings()), ("any", fresh))}


def save_rewriter(model: Qwen3VLForConditionalGeneration, tokenizer: Qwen2Tokenizer, folder: Path) -> None:
    """Model and processor, in float16."""
    model.half().save_pretrained(folder, safe_serialization=True)
    rewriter_processor(tokenizer).save_pretrained(folder)


def answer_to(instruction: str) -> str:
    """What the model shall say."""
    return json.dumps({"instruction": instruction})


@dataclass
class _Row:
    """Conversations behind their common head: token ids, positions, and the conversation of each (-1: the head)."""

    ids: Tensor
    positions: Tensor
    owners: Tensor
    is_answer: Tensor


class Talks:
    """Conversations as the service's rewriter has them."""

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._head: list[int] = tokenizer(f"<|im_start|>system\n{INSTRUCTIONS}<|im_end|>\n").input_ids

    def answers(
        self, model: Qwen3VLForConditionalGeneration, found: Sequence[Rewriting], owners: list[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (n, vocabulary) for all tokens of the answers, and the tokens (n,); `owners` hears whose they are."""
        row = self._row(found)
        language = model.model.language_model
        embeds = language.embed_tokens(row.ids)
        embeds = embeds.masked_fill((row.ids == model.config.image_token_id)[:, None], 0.0)
        order = torch.arange(len(row.ids))
        seen = (order[:, None] >= order) & ((row.owners[:, None] == row.owners) | (row.owners == -1))
        mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
        positions = row.positions.expand(3, 1, -1)
        states = language(inputs_embeds=embeds[None], attention_mask=mask[None, None], position_ids=positions)
        says = torch.nonzero(row.is_answer)[:, 0]
        if owners is not None:
            owners.extend(row.owners[says].tolist())
        # A token is foretold by the one before it.
        return model.lm_head(states.last_hidden_state[0, says - 1]), row.ids[says]

    def share_right(self, model: Qwen3VLForConditionalGeneration, found: Sequence[Rewriting]) -> float:
        """Of answers, those that greedy decoding gets right: with each token right after the right ones before it."""
        wrong = 0
        for start in range(0, len(found), 32):
            owners = list[int]()
            logits, wanted = self.answers(model, found[start : start + 32], owners)
            missed = (logits.argmax(-1) != wanted).tolist()
            wrong += len({owner for owner, is_wrong in zip(owners, missed, strict=True) if is_wrong})
        return 1 - wrong / len(found)

    def _row(self, found: Sequence[Rewriting]) -> _Row:
        ids, owners = list(self._head), [-1] * len(self._head)
        positions, is_answer = list(range(len(self._head))), [False] * len(self._head)
        for owner, rewriting in enumerate(found):
            asked, said = self._tokens(rewriting)
            ids += [*asked, *said]
            owners += [owner] * (len(asked) + len(said))
            positions += range(len(self._head), len(self._head) + len(asked) + len(said))
            is_answer += [False] * len(asked) + [True] * len(said)
        return _Row(*(torch.tensor(values) for values in (ids, positions, owners, is_answer)))

    def _tokens(self, rewriting: Rewriting) -> tuple[list[int], list[int]]:
        slots = "".join(
            f"Picture {number}: <|vision_start|><|image_pad|><|vision_end|>"
            for number in range(1, rewriting.num_pictures + 1)
        )
        asked = f"<|im_start|>user\n{slots}{user_message(rewriting.wish)}<|im_end|>\n<|im_start|>assistant\n"
        said = f"{answer_to(rewriting.instruction)}<|im_end|>"
        return self._tokenizer(asked).input_ids, self._tokenizer(said).input_ids
