"""Adapters of an edit: those that the field `loras` names, and the one whose words move the camera."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from serve_app.config import LoraSettings
from serve_app.edits.camera import CameraPose, words_of
from serve_app.edits.request import MAX_LORAS, EditOptions, LoraUse
from serve_app.errors import InvalidInput
from serve_app.ingress.parsing.validation import default, echo, within

_MIN_LIKENESS = 0.5
_MAX_COMPARED_CHARS = 100


def checked_loras(
    named: Sequence[tuple[str | None, float | None]], adapters: Iterable[LoraSettings], field: str
) -> tuple[LoraUse, ...]:
    """The adapters that a request names, with their weights.

    Args:
        named: names, and weights where the request has them.
        adapters: all that there are.

    Raises:
        InvalidInput: too many, one without a name or twice, one that requests may not name, a weight out of bounds.
    """
    if len(named) > MAX_LORAS:
        raise InvalidInput(f"{field} holds {len(named)} adapters; at most {MAX_LORAS} go into one edit.", field)
    known = {lora.name: lora for lora in adapters}
    uses: dict[str, LoraUse] = {}
    for index, (name, weight) in enumerate(named):
        place = f"{field}[{index}]"
        if name is None:
            raise InvalidInput(f"{place}.name is required.", f"{place}.name")
        if name in uses:
            raise InvalidInput(f"{place}.name: {echo(name)} is listed twice. List each adapter once.", f"{place}.name")
        lora = _known_lora(name, known, f"{place}.name")
        uses[name] = LoraUse(
            name, within(default(weight, lora.weight), lora.min_weight, lora.max_weight, f"{place}.weight")
        )
    return tuple(uses.values())


def _known_lora(name: str, known: dict[str, LoraSettings], field: str) -> LoraSettings:
    lora = known.get(name)
    if lora is not None and not lora.is_fused:
        return lora
    if lora is not None:
        raise InvalidInput(f"{field}: {echo(name)} is part of the model, for all edits. Leave it out.", field)
    raise InvalidInput(f"{field}: there is no adapter {echo(name)} here. {closest(name, known.values())}", field)


def closest(name: str, adapters: Iterable[LoraSettings]) -> str:
    """A hint for a wrong name of an adapter."""
    names = [lora.name for lora in adapters if not lora.is_fused]
    close = difflib.get_close_matches(name[:_MAX_COMPARED_CHARS], names, n=1, cutoff=_MIN_LIKENESS)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"GET /v1/adapters lists them: {', '.join(names)}." if names else "Requests can name none on this server."


def posed(edit: EditOptions, camera: CameraPose | None, adapters: Iterable[LoraSettings], prefix: str) -> EditOptions:
    """The edit with a camera pose, in the words of the adapter for it.

    Raises:
        InvalidInput: that adapter has no words for the pose.
    """
    lora = next((lora for lora in adapters if lora.camera is not None), None)
    if camera is None or lora is None or lora.camera is None:
        return replace(edit, camera=camera)
    try:
        return replace(edit, camera=camera, camera_words=words_of(camera, lora.camera))
    except KeyError as missing:
        (part,) = missing.args
        known = ", ".join(f"{value:g}" for value in sorted(getattr(lora.camera, part)))
        value = getattr(camera, part)
        raise InvalidInput(
            f"{prefix}{part} {value:g} is unknown to this server's camera adapter, {lora.name}; it knows {known}.",
            f"{prefix}{part}",
        ) from None
