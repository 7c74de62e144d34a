"""Wishes by instruction: each changes what it names and nothing else, and no held-out words or scenes leak."""

from dataclasses import replace
from string import Formatter

import numpy as np
import pytest

from serve_app.edits.camera import CameraPose
from serve_app.tiny.wishes import KINDS, VOCABULARY, Wish, random_wish, style_wish, styled, wishes_of
from serve_app.tiny.world import Picture, Scene, Thing, is_held_out, random_scene, render

PAIR = Scene(Thing("box", "red"), Thing("sphere", "yellow"), "grass", "day", 1.04)
LONE = replace(PAIR, neighbour=None)
POSE = CameraPose(0, 30, 1.0)
FIELDS = {
    "recolour": {"subject"},
    "light": {"light"},
    "ground": {"ground"},
    "add": {"neighbour"},
    "remove": {"neighbour"},
    "style": {"subject", "neighbour", "ground", "light"},
}


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [random_scene(rng) for _ in range(count)]


def wishes(scene: Scene, kind: str, held_out: bool = False) -> list[Wish]:
    return [wish for wish in wishes_of(scene, np.random.default_rng(1), held_out) if wish.kind == kind]


def difference(scene: Scene, wish: Wish) -> Picture:
    before, after = (render(each, POSE).astype(np.int16) for each in (scene, wish.target))
    largest: Picture = abs(before - after).max(axis=2).astype(np.uint8)
    return largest


def test_each_wish_changes_what_its_kind_may_change_and_something() -> None:
    for scene in scenes(40):
        for wish in wishes_of(scene, np.random.default_rng(2)):
            fields = {name for name in vars(scene) if getattr(scene, name) != getattr(wish.target, name)}
            assert fields, wish
            assert fields <= FIELDS[wish.kind], wish


def test_a_wish_names_what_it_changes() -> None:
    for scene in scenes(40):
        for wish in wishes_of(scene, np.random.default_rng(2)):
            target, words = wish.target, wish.prompt.split()
            if wish.kind == "recolour":
                assert {target.subject.colour, scene.subject.shape} <= set(words)
            elif wish.kind in ("light", "ground"):
                assert getattr(target, wish.kind) in words
            elif wish.kind == "add":
                assert target.neighbour is not None
                assert {target.neighbour.colour, target.neighbour.shape} <= set(words)
            assert (wish.reference is not None) == (wish.kind == "style")
            assert "{" not in wish.prompt


@pytest.mark.parametrize("wish", wishes(PAIR, "recolour"), ids=lambda wish: wish.prompt)
def test_recolouring_leaves_all_but_the_subject_equal(wish: Wish) -> None:
    where = difference(PAIR, wish).nonzero()
    assert 150 < len(where[0]) < 700
    bare = render(LONE, POSE).astype(np.int16)
    gone = abs(bare - render(replace(wish.target, neighbour=None), POSE)).max(axis=2)
    assert set(zip(*where, strict=True)) <= set(zip(*gone.nonzero(), strict=True))
    assert not difference(PAIR, wish)[:, :12].any()


def test_removing_leaves_the_far_side_equal_and_is_undone_by_adding() -> None:
    (gone,) = wishes(PAIR, "remove")
    assert gone.target == LONE
    assert not difference(PAIR, gone)[:, :24].any()
    assert (difference(PAIR, gone)[:, 36:] > 40).sum() > 60
    assert PAIR in [wish.target for wish in wishes(LONE, "add")]


def test_impossible_wishes_are_not_offered() -> None:
    assert not wishes(PAIR, "add")
    assert not wishes(LONE, "remove")
    with pytest.raises(ValueError, match="'remove'"):
        random_wish(LONE, np.random.default_rng(0), kind="remove")


def test_a_style_takes_colours_ground_and_light_and_leaves_shapes_and_size() -> None:
    reference = Scene(Thing("cone", "blue"), Thing("cylinder", "orange"), "snow", "night", 0.95)
    wish = style_wish(PAIR, reference, np.random.default_rng(0))
    expected = Scene(Thing("box", "blue"), Thing("sphere", "orange"), "snow", "night", 1.04)
    assert (wish.target, wish.reference, wish.kind) == (expected, reference, "style")
    assert styled(LONE, reference).neighbour is None
    assert styled(PAIR, replace(reference, neighbour=None)).neighbour == PAIR.neighbour


def test_training_never_leads_to_a_held_out_pair() -> None:
    rng = np.random.default_rng(6)
    num_checked = 0
    for scene in scenes(300, seed=7):
        if not is_held_out(scene):
            targets = [random_wish(scene, rng) for _ in range(4)]
            assert not any(is_held_out(wish.target) for wish in targets)
            assert not any(wish.reference and is_held_out(wish.reference) for wish in targets)
            num_checked += 1
    assert num_checked > 200


def test_every_kind_and_every_wording_is_drawn() -> None:
    rng = np.random.default_rng(8)
    drawn = [random_wish(scene, rng) for scene in scenes(1500, seed=9)]
    shares = {kind: sum(wish.kind == kind for wish in drawn) / len(drawn) for kind in KINDS}
    assert min(shares.values()) > 0.03
    for kind, each in KINDS.items():
        prompts = [wish.prompt for wish in drawn if wish.kind == kind]
        assert all(any(fits(wording, prompt) for prompt in prompts) for wording in each.wordings), kind


def test_held_out_wordings_are_no_training_wordings_but_use_their_words() -> None:
    rng = np.random.default_rng(10)
    training = {wish.prompt for scene in scenes(300) for wish in wishes_of(scene, rng)}
    held_out = {wish.prompt for scene in scenes(300) for wish in wishes_of(scene, rng, held_out=True)}
    assert not training & held_out
    assert {word for prompt in training for word in prompt.split()} == set(VOCABULARY)
    assert {word for prompt in held_out for word in prompt.split()} <= set(VOCABULARY)
    assert all(len(set(kind.held_out_wordings)) == 2 for kind in KINDS.values())


def test_equal_seeds_give_equal_wishes_and_each_prompt_one_meaning() -> None:
    first, second = (wishes_of(PAIR, np.random.default_rng(11)) for _ in range(2))
    assert first == second
    meanings: dict[str, set[Scene]] = {}
    for seed in range(30):
        for wish in wishes_of(LONE, np.random.default_rng(seed)):
            if wish.kind != "style":
                meanings.setdefault(wish.prompt, set()).add(wish.target)
    assert {len(targets) for targets in meanings.values()} == {1}


def fits(wording: str, prompt: str) -> bool:
    """Whether the prompt is the wording with one word in each of its placeholders."""
    placeholders = [name for _, name, _, _ in Formatter().parse(wording) if name]
    words, pattern = prompt.split(), wording.format(**dict.fromkeys(placeholders, "*")).split()
    same = [expected in ("*", word) for word, expected in zip(words, pattern, strict=False)]
    return len(words) == len(pattern) and all(same)
