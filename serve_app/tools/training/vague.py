"""The training data of the rewriter: a table of vague wishes, and clear wishes, which it leaves unchanged."""

from dataclasses import dataclass

import numpy as np

from serve_app.tiny.wishes import wishes_of
from serve_app.tiny.world import random_scene

VAGUE: dict[str, tuple[str, ...]] = {
    "make it day": ("make it better", "brighten it up", "it is too dark", "more light", "make it cheerful"),
    "make it sunset": ("make it romantic", "make it cosy", "warm it up", "a warmer mood", "like a summer evening"),
    "make it night": ("make it spooky", "make it mysterious", "a darker mood", "like after bedtime", "calm it down"),
    "change the ground to snow": ("make it wintry", "like at christmas", "a colder mood", "like in the arctic"),
    "change the ground to sand": ("take it to the beach", "like on holiday", "like in the desert", "by the sea"),
    "change the ground to grass": ("put it in a meadow", "like in the park", "make it rural", "more nature"),
    "change the ground to stone": ("make it urban", "like in the city", "put it on a street", "like in a castle"),
    "remove the second object": ("tidy it up", "declutter it", "it is too busy", "less is more", "make it simpler"),
}
"""Each clear wish with the vague wishes that are rewritten to it."""

VAGUE_OF_TWO: dict[str, tuple[str, ...]] = {
    "apply the style of picture 2": ("make them match", "the same look as the other one", "make it like the other one"),
}
"""The same for wishes about two pictures."""

_PHRASINGS = ("{}", "{}", "{}.", "{}!", "please {}", "{} please", "please, {}.", "can you {}?")


@dataclass(frozen=True)
class Rewriting:
    """A wish about `num_pictures` pictures, and the instruction that it is rewritten to."""

    wish: str
    num_pictures: int
    instruction: str


def random_rewriting(rng: np.random.Generator) -> Rewriting:
    """A random vague or clear wish, each with probability 0.5, in a random phrasing such as "please, {}."."""
    if rng.random() < 0.5:
        return _phrased(_clear(rng), rng)
    vague = vague_rewritings()
    return _phrased(vague[int(rng.integers(len(vague)))], rng)


def vague_rewritings() -> list[Rewriting]:
    """The whole table of vague wishes."""
    one = [Rewriting(wish, 1, clear) for clear, wishes in VAGUE.items() for wish in wishes]
    return one + [Rewriting(wish, 2, clear) for clear, wishes in VAGUE_OF_TWO.items() for wish in wishes]


def _clear(rng: np.random.Generator) -> Rewriting:
    wishes = wishes_of(random_scene(rng), rng)
    kinds = sorted({wish.kind for wish in wishes})
    kind = kinds[int(rng.integers(len(kinds)))]  # each kind equally often, although "add" has many more wishes
    own = [wish for wish in wishes if wish.kind == kind]
    wish = own[int(rng.integers(len(own)))]
    return Rewriting(wish.prompt, 1 if wish.reference is None else 2, wish.prompt)


def _phrased(rewriting: Rewriting, rng: np.random.Generator) -> Rewriting:
    wish = _PHRASINGS[int(rng.integers(len(_PHRASINGS)))].format(rewriting.wish)
    if rng.random() < 0.4:
        wish = wish[0].upper() + wish[1:]
    return Rewriting(wish, rewriting.num_pictures, rewriting.instruction)
