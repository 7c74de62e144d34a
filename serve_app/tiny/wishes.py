"""The prompts that the tiny model understands ("wishes"), each with the scene that its picture must show.

A wish keeps the picture's pose. To change the pose too, put the camera's words in front, as for any prompt. Each kind
has several wordings for training, and two that only tests use, made of the same words.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from serve_app.tiny.solids import SHAPES
from serve_app.tiny.world import COLOURS, GROUNDS, LIGHTS, Scene, Thing, is_held_out, random_scene


@dataclass(frozen=True)
class Wish:
    """A prompt and the scene after the edit; `reference` is the scene of picture 2, for kinds that need one."""

    kind: str
    prompt: str
    target: Scene
    reference: Scene | None = None


@dataclass(frozen=True)
class _Change:
    """A target, the reference that it took its style from, and the words that fill the wording's gaps."""

    target: Scene
    words: dict[str, str]
    reference: Scene | None = None


@dataclass(frozen=True)
class _Kind:
    """The changes that a kind of wish can make to a scene, and how they are worded."""

    changes: Callable[[Scene, np.random.Generator], Iterator[_Change]]
    wordings: tuple[str, ...]
    held_out_wordings: tuple[str, str]


def wishes_of(scene: Scene, rng: np.random.Generator, held_out: bool = False) -> list[Wish]:
    """Every wish that is possible for the scene, each in a wording drawn from the training ones or the held-out ones.

    A training scene leads to training scenes alone, so that no held-out pair of things is ever seen in training.
    """
    return [wish for kind in KINDS for wish in _wishes(kind, scene, rng, held_out)]


def random_wish(scene: Scene, rng: np.random.Generator, held_out: bool = False, kind: str | None = None) -> Wish:
    """One wish for the scene: of any kind that it allows with equal chance, or of the kind named.

    Raises:
        ValueError: the scene allows no wish of that kind: one without a neighbour has none to remove.
    """
    for name in [kind] if kind is not None else rng.permutation(list(KINDS)).tolist():
        possible = _wishes(name, scene, rng, held_out)
        if possible:
            return possible[int(rng.integers(len(possible)))]
    raise ValueError(f"{scene} allows no wish of kind {kind!r}.")


def styled(scene: Scene, reference: Scene) -> Scene:
    """The scene's things in the reference's colours, on its ground and in its light.

    The neighbour keeps its own colour where the reference has no neighbour to take one from.
    """
    neighbour, other = scene.neighbour, reference.neighbour
    if neighbour is not None and other is not None:
        neighbour = replace(neighbour, colour=other.colour)
    subject = replace(scene.subject, colour=reference.subject.colour)
    return replace(scene, subject=subject, neighbour=neighbour, ground=reference.ground, light=reference.light)


def style_wish(scene: Scene, reference: Scene, rng: np.random.Generator, held_out: bool = False) -> Wish:
    """The wish to give the scene (picture 1) the reference's style (picture 2)."""
    return _worded("style", _Change(styled(scene, reference), {}, reference), rng, held_out)


def _wishes(kind: str, scene: Scene, rng: np.random.Generator, held_out: bool) -> list[Wish]:
    training = not is_held_out(scene)
    changes = [change for change in KINDS[kind].changes(scene, rng) if not (training and is_held_out(change.target))]
    return [_worded(kind, change, rng, held_out) for change in changes]


def _worded(kind: str, change: _Change, rng: np.random.Generator, held_out: bool) -> Wish:
    wordings = KINDS[kind].held_out_wordings if held_out else KINDS[kind].wordings
    wording = wordings[int(rng.integers(len(wordings)))]
    return Wish(kind, wording.format(**change.words), change.target, change.reference)


# --- what each kind changes -----------------------------------------------------------------------------------------


def _recolour(scene: Scene, _: np.random.Generator) -> Iterator[_Change]:
    taken = {scene.subject.colour, scene.neighbour.colour if scene.neighbour else ""}
    for colour in COLOURS:
        if colour not in taken:
            subject = replace(scene.subject, colour=colour)
            yield _Change(replace(scene, subject=subject), {"shape": scene.subject.shape, "colour": colour})


def _relight(scene: Scene, _: np.random.Generator) -> Iterator[_Change]:
    for light in LIGHTS:
        if light != scene.light:
            yield _Change(replace(scene, light=light), {"light": light})


def _change_ground(scene: Scene, _: np.random.Generator) -> Iterator[_Change]:
    for ground in GROUNDS:
        if ground != scene.ground:
            words = {"ground": ground, "old": scene.ground, "shape": scene.subject.shape}
            yield _Change(replace(scene, ground=ground), words)


def _add(scene: Scene, _: np.random.Generator) -> Iterator[_Change]:
    if scene.neighbour is not None:
        return
    for shape, colour in product(SHAPES, COLOURS):
        if shape != scene.subject.shape and colour != scene.subject.colour:
            words = {"shape": shape, "colour": colour, "subject": scene.subject.shape}
            yield _Change(replace(scene, neighbour=Thing(shape, colour)), words)


def _remove(scene: Scene, _: np.random.Generator) -> Iterator[_Change]:
    if scene.neighbour is not None:
        words = {"shape": scene.neighbour.shape, "colour": scene.neighbour.colour}
        yield _Change(replace(scene, neighbour=None), words)


def _restyle(scene: Scene, rng: np.random.Generator) -> Iterator[_Change]:
    for _ in range(_NUM_REFERENCES):
        reference = random_scene(rng)
        if is_held_out(reference) == is_held_out(scene) and styled(scene, reference) != scene:
            yield _Change(styled(scene, reference), {}, reference)


_NUM_REFERENCES = 8  # drawn for each scene, of which about one in eight is of the other split

KINDS = {
    "recolour": _Kind(
        _recolour,
        (
            "make the {shape} {colour}",
            "paint the {shape} {colour}",
            "turn the {shape} {colour}",
            "change the colour of the {shape} to {colour}",
            "the {shape} should be {colour}",
        ),
        ("change the {shape} to {colour}", "the colour of the {shape} should be {colour}"),
    ),
    "light": _Kind(
        _relight,
        (
            "make it {light}",
            "change the light to {light}",
            "turn the scene to {light}",
            "it should be {light}",
            "show the scene in {light} light",
        ),
        ("change the scene to {light}", "the light should be {light}"),
    ),
    "ground": _Kind(
        _change_ground,
        (
            "change the ground to {ground}",
            "make the ground {ground}",
            "put the {shape} on {ground}",
            "replace the {old} with {ground}",
            "show the scene on {ground}",
        ),
        ("turn the ground to {ground}", "the ground should be {ground}"),
    ),
    "add": _Kind(
        _add,
        (
            "add a small {colour} {shape}",
            "put a small {colour} {shape} beside the {subject}",
            "place a small {colour} {shape} next to the {subject}",
            "add a {colour} {shape} as a second object",
        ),
        ("place a small {colour} {shape} beside the {subject}", "put a {colour} {shape} next to the {subject}"),
    ),
    "remove": _Kind(
        _remove,
        (
            "remove the {shape}",
            "take the small {shape} away",
            "delete the {colour} {shape}",
            "remove the second object",
        ),
        ("delete the second object", "take the {colour} {shape} away"),
    ),
    "style": _Kind(
        _restyle,
        (
            "apply the style of picture 2",
            "make picture 1 look like picture 2",
            "use the colours of picture 2",
            "give picture 1 the style of picture 2",
            "apply the palette of picture 2 to picture 1",
        ),
        ("use the style of picture 2", "give picture 1 the palette of picture 2"),
    ),
}


def _vocabulary() -> tuple[str, ...]:
    wordings = [re.sub(r"{\w+}", "", wording) for kind in KINDS.values() for wording in kind.wordings]
    return tuple(sorted({*" ".join(wordings).split(), *SHAPES, *COLOURS, *GROUNDS, *LIGHTS}))


VOCABULARY = _vocabulary()
"""Every word of the training wordings and of what fills their gaps."""
