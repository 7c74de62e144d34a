"""Trains the tiny rewriter: a Qwen3-VL that answers vague wishes with clear ones, in the JSON of its instructions.

Its vision tower outputs zeros, as the text encoder's does: the answer depends on the words and the number of pictures
only. All conversations of a batch begin with the same long instructions. They follow one shared copy of these in a
single row, and an attention mask separates them.
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
    """A tokenizer in which each word of instructions, wishes and answers is one token."""
    vague = [wish for wishes in (*VAGUE.values(), *VAGUE_OF_TWO.values()) for wish in wishes]
    words = sorted({*WORDS, *" ".join(vague).split(), "please", "can", "you"})
    spellings = [each for word in words for each in (word, f" {word}", word.capitalize(), f" {word.capitalize()}")]
    texts = [INSTRUCTIONS, user_message("wish"), answer_to("wish"), "\nPicture 1: \nPicture 2: ", "user\nassistant\n"]
    return build_tokenizer([*texts, *spellings], vocab_size=4096)


def new_rewriter(tokenizer: Qwen2Tokenizer, recipe: RewriterRecipe) -> Qwen3VLForConditionalGeneration:
    """An untrained model whose vision tower outputs zeros."""
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
    """Train the model, or resume; returns whether the stage is done."""
    parameters = {name: each for name, each in model.named_parameters() if "visual" not in name}
    fit = Fit("rewriter", parameters, recipe.fit, folder)
    conversations = Conversations(tokenizer)
    return run_fit(fit, rewriter_loss(model, conversations, recipe), lambda: scores(model, conversations), max_seconds)


def rewriter_loss(
    model: Qwen3VLForConditionalGeneration, conversations: "Conversations", recipe: RewriterRecipe
) -> Loss:
    """The cross entropy of the answers' tokens."""

    def loss_of(rng: np.random.Generator) -> Tensor:
        logits, targets = conversations.answers(model, [random_rewriting(rng) for _ in range(recipe.fit.batch)])
        return F.cross_entropy(logits, targets)

    return loss_of


@torch.no_grad()
def scores(
    model: Qwen3VLForConditionalGeneration, conversations: "Conversations", num_random: int = 200
) -> Mapping[str, float]:
    """Fractions of exactly right answers: to the table's vague wishes, and to random wishes, clear and vague."""
    rng = np.random.default_rng(7)
    fresh = [random_rewriting(rng) for _ in range(num_random)]
    return {
        name: conversations.accuracy(model, rewritings)
        for name, rewritings in (("vague", vague_rewritings()), ("any", fresh))
    }


def save_rewriter(model: Qwen3VLForConditionalGeneration, tokenizer: Qwen2Tokenizer, folder: Path) -> None:
    """Write model and processor in float16."""
    model.half().save_pretrained(folder, safe_serialization=True)
    rewriter_processor(tokenizer).save_pretrained(folder)


def answer_to(instruction: str) -> str:
    """The answer that the model is trained to give."""
    return json.dumps({"instruction": instruction})


@dataclass
class _Row:
    """Conversations after their shared head: ids, positions, and each token's conversation (-1: the head)."""

    ids: Tensor
    positions: Tensor
    owners: Tensor
    is_answer: Tensor


class Conversations:
    """Conversations in the format of the service's rewriter."""

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._head: list[int] = tokenizer(f"<|im_start|>system\n{INSTRUCTIONS}<|im_end|>\n").input_ids

    def answers(
        self, model: Qwen3VLForConditionalGeneration, rewritings: Sequence[Rewriting], owners: list[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (n, vocabulary) for all tokens of the answers, and the tokens (n,).

        Args:
            owners: gets the index of each token's conversation appended.
        """
        row = self._row(rewritings)
        language = model.model.language_model
        embeds = language.embed_tokens(row.ids)
        embeds = embeds.masked_fill((row.ids == model.config.image_token_id)[:, None], 0.0)
        order = torch.arange(len(row.ids))
        visible = (order[:, None] >= order) & ((row.owners[:, None] == row.owners) | (row.owners == -1))
        mask = torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))
        positions = row.positions.expand(3, 1, -1)
        states = language(inputs_embeds=embeds[None], attention_mask=mask[None, None], position_ids=positions)
        answers = torch.nonzero(row.is_answer)[:, 0]
        if owners is not None:
            owners.extend(row.owners[answers].tolist())
        # The state of a token predicts the next one.
        return model.lm_head(states.last_hidden_state[0, answers - 1]), row.ids[answers]

    def accuracy(self, model: Qwen3VLForConditionalGeneration, rewritings: Sequence[Rewriting]) -> float:
        """The fraction of answers that greedy decoding gets right: each token, after the right ones before it."""
        wrong = 0
        for start in range(0, len(rewritings), 32):
            owners = list[int]()
            logits, targets = self.answers(model, rewritings[start : start + 32], owners)
            wrong_tokens = (logits.argmax(-1) != targets).tolist()
            wrong += len({owner for owner, is_wrong in zip(owners, wrong_tokens, strict=True) if is_wrong})
        return 1 - wrong / len(rewritings)

    def _row(self, rewritings: Sequence[Rewriting]) -> _Row:
        ids, owners = list(self._head), [-1] * len(self._head)
        positions, is_answer = list(range(len(self._head))), [False] * len(self._head)
        for owner, rewriting in enumerate(rewritings):
            prompt, answer = self._tokens(rewriting)
            ids += [*prompt, *answer]
            owners += [owner] * (len(prompt) + len(answer))
            positions += range(len(self._head), len(self._head) + len(prompt) + len(answer))
            is_answer += [False] * len(prompt) + [True] * len(answer)
        return _Row(*(torch.tensor(values) for values in (ids, positions, owners, is_answer)))

    def _tokens(self, rewriting: Rewriting) -> tuple[list[int], list[int]]:
        """The token ids of prompt and answer."""
        slots = "".join(
            f"Picture {number}: <|vision_start|><|image_pad|><|vision_end|>"
            for number in range(1, rewriting.num_pictures + 1)
        )
        prompt = f"<|im_start|>user\n{slots}{user_message(rewriting.wish)}<|im_end|>\n<|im_start|>assistant\n"
        answer = f"{answer_to(rewriting.instruction)}<|im_end|>"
        return self._tokenizer(prompt).input_ids, self._tokenizer(answer).input_ids
