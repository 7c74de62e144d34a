"""The fields that the dialects share, and their types: strict, so that `true` is not a number and `"4"` is not a step
count. Null means absent."""

import re
import secrets
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import Header
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from serve_app.config import LimitSettings, LoraSettings
from serve_app.edits.camera import CameraPose, orbit_azimuths, snap
from serve_app.edits.images import ENCODERS
from serve_app.edits.request import MAX_LORAS, EditOptions, OutputFormat, Sampling
from serve_app.errors import InvalidInput, listed
from serve_app.ingress.parsing.loras import checked_loras
from serve_app.ingress.parsing.validation import checked_prompt, default, echo, within, wrong

MAX_SEED = 2**63 - 1
RANDOM_SEEDS = 2**31
MAX_ITEMS = 1000
"""Of a list, checked before its items are. The settings allow no more edits, and usually far fewer."""
MAX_FIELDS = 100
"""Of an object, known or not. Otherwise, each unknown field would be an error of its own."""
MAX_NAME_CHARS = 2048
"""Of texts that are neither prompts nor pictures. The longest of them are URLs of webhooks."""
MIN_TIMEOUT_S = 0.1
MAX_PARTIAL_IMAGES = 3
MAX_ORBIT = 8
"""The adapter knows eight azimuths; an orbit of more views would repeat some."""

FORMATS = {**{name: name for name in ENCODERS}, "jpg": "jpeg"}

_ORBIT = re.compile(f"orbit(?::([1-{MAX_ORBIT}]))?")
_SIZE = re.compile(r"([0-9]{1,9})[x*]([0-9]{1,9})")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _whole(value: object) -> object:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise wrong("a whole number", value)


def _encodable(text: str) -> str:
    # JSON can escape half of a surrogate pair; Python reads it, and no encoder accepts it afterwards.
    if not text.isascii() and _LONE_SURROGATE.search(text):
        raise wrong("valid Unicode text", text)
    return text


def _text(value: object) -> object:
    if value is None:
        return value
    if isinstance(value, str):
        return _encodable(value)
    raise wrong("a string", value)


def _name(value: object) -> object:
    if isinstance(value, str) and len(value) > MAX_NAME_CHARS:
        raise wrong(f"at most {MAX_NAME_CHARS} characters long", value)
    return _text(value)


def _hint(value: object) -> object:
    """Bounded, although it has no effect, since it is stored with a job."""
    if isinstance(value, list | dict):
        raise wrong("a text, a number or a boolean", value)
    return _name(value) if isinstance(value, str) else value


def _check_length(value: object) -> None:
    """Check that `value` is no list of more than `MAX_ITEMS`.

    Raises:
        PydanticCustomError: it is.
    """
    if isinstance(value, list) and len(value) > MAX_ITEMS:
        raise wrong(f"a list of at most {MAX_ITEMS} items", value)


def list_like(example: str) -> BeforeValidator:
    """The check that a field is absent or a list of at most `MAX_ITEMS`.

    Args:
        example: of the list, for the message.
    """

    def check(value: object) -> object:
        _check_length(value)
        if value is None or isinstance(value, list):
            return value
        raise wrong(f"a list like {example}", value)

    return BeforeValidator(check)


def _texts(value: object, expected: str = "a list of strings") -> object:
    if value is None:
        return value
    _check_length(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [_encodable(item) for item in value]
    raise wrong(expected, value)


def _text_or_texts(value: object) -> object:
    return _text(value) if isinstance(value, str) else _texts(value, "a string or a list of strings")


def refused(why: str) -> BeforeValidator:
    """The check that a field which other servers have is absent.

    Args:
        why: completes the message `FIELD …`, and names what to use instead.
    """

    def check(value: object) -> None:
        if value is not None:
            raise PydanticCustomError("unsupported", why)

    return BeforeValidator(check)


Hint = Annotated[Any, BeforeValidator(_hint), Field(description="Accepted; it has no effect here.")]
"""A field of other servers that does not change the picture."""

Number = Annotated[float | None, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int | None, BeforeValidator(_whole)]
Flag = Annotated[bool | None, Field(strict=True)]
Text = Annotated[str | None, BeforeValidator(_text)]
Name = Annotated[str | None, BeforeValidator(_name)]
Texts = Annotated[list[str] | None, BeforeValidator(_texts)]
TextOrTexts = Annotated[str | list[str] | None, BeforeValidator(_text_or_texts)]


def checked_seed(value: int | None, otherwise: int, field: str, most: int = MAX_SEED) -> int:
    """The seed that a client set; a random one for -1, as other servers have it.

    Raises:
        InvalidInput: it is out of bounds.
    """
    seed = default(value, otherwise)
    if seed == -1:
        return secrets.randbelow(RANDOM_SEEDS)
    if not 0 <= seed <= most:
        raise InvalidInput(f"{field} must be between 0 and {most}, or -1 for a random one, got {echo(seed)}.", field)
    return seed


def checked_size(size: str | None, limits: LimitSettings, field: str) -> tuple[int | None, int | None]:
    """Width and height in pixels; neither if they follow from the first picture.

    Raises:
        InvalidInput: naming the field.
    """
    if size is None or size == "auto":
        return None, None
    sides = _SIZE.fullmatch(size)
    if sides is None:
        raise InvalidInput(
            f"Invalid {field.rpartition('.')[2]} format: {echo(size)}. Expected format: 'WIDTHxHEIGHT' "
            "(e.g., '1024x1024').",
            field,
        )
    width, height = (int(side) for side in sides.groups())
    if not all(limits.min_side_px <= side <= limits.max_side_px for side in (width, height)):
        raise InvalidInput(
            f"{field} must have sides between {limits.min_side_px} and {limits.max_side_px} pixels, got {echo(size)}.",
            field,
        )
    return width, height


RepeatKeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="The same key with the same body is the same job, however often it is sent. It goes on when the "
        "client leaves.",
    ),
]


class StrictModel(BaseModel):
    """A JSON object without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: object) -> object:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise wrong(f"an object of at most {MAX_FIELDS} fields", value)
        return value


class Lora(StrictModel):
    """An adapter to use."""

    # Required, but first an unknown field is named: other servers have `path` and `scale`.
    name: Name = Field(None, description="As GET /v1/adapters lists it. Required.")
    weight: Number = Field(None, description="Its strength; negative ones turn it around. Default the adapter's own.")


_LORAS = list_like('[{"name": "…", "weight": 1.0}]')
_LORAS_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "array", "items": Lora.model_json_schema(), "maxItems": MAX_LORAS}, {"type": "null"}]
}


class DrawFields(StrictModel):
    """How a picture is drawn, whatever the camera. Absent and null mean the same."""

    rewrite_prompt: Flag = Field(
        None, description="Let the rewriter turn a vague instruction into a precise one. Default false."
    )
    num_inference_steps: Whole = Field(None, description="Default 4; 4 to 8 suit the Lightning adapter.")
    guidance_scale: Number = Field(None, description="Classifier-free guidance, active above 1. Default 1.0.")
    true_cfg_scale: Number = Field(None, description="The same setting by the model's own name; it takes precedence.")
    negative_prompt: Text = Field(None, description="What guidance steers away from. Default one space.")
    loras: Annotated[list[Lora] | None, _LORAS, WithJsonSchema(_LORAS_SCHEMA)] = Field(
        None,
        description=f"Adapters to use for this edit, at most {MAX_LORAS} (in a form: as JSON text, or as parts "
        "`loras[][name]` and `loras[][weight]`).",
    )
    timeout_s: Number = Field(
        None,
        description="Seconds from the arrival of the whole request after which it is cancelled and answered with 504. "
        "At most, and by default, the server's limits.request_timeout_s (600).",
    )

    def timeout(self, limits: LimitSettings, prefix: str = "") -> float | None:
        """Seconds that the request may take, or None if the client set no limit.

        Raises:
            InvalidInput: out of bounds; `prefix` precedes the field's name in the message.
        """
        if self.timeout_s is None:
            return None
        return within(self.timeout_s, MIN_TIMEOUT_S, limits.request_timeout_s, f"{prefix}timeout_s")

    def options(
        self, seed: int, limits: LimitSettings, adapters: Iterable[LoraSettings], prefix: str = ""
    ) -> EditOptions:
        """These fields, as options of an edit with this seed.

        Args:
            adapters: all that there are.

        Raises:
            InvalidInput: a value is out of bounds; `prefix` precedes its field's name in the message.
        """
        guidance_field = "guidance_scale" if self.true_cfg_scale is None else "true_cfg_scale"
        guidance = default(getattr(self, guidance_field), 1.0)
        steps_field = f"{prefix}num_inference_steps"
        sampling = Sampling(
            seed=seed,
            num_inference_steps=within(
                default(self.num_inference_steps, 4), 1, limits.max_inference_steps, steps_field
            ),
            true_cfg_scale=within(guidance, 0.0, limits.max_guidance_scale, f"{prefix}{guidance_field}"),
            negative_prompt=checked_prompt(default(self.negative_prompt, " "), f"{prefix}negative_prompt", limits),
        )
        named = [(lora.name, lora.weight) for lora in self.loras or []]
        loras = checked_loras(named, adapters, f"{prefix}loras")
        return EditOptions(rewrite_prompt=bool(self.rewrite_prompt), sampling=sampling, loras=loras)


class CameraFields(StrictModel):
    """A camera pose, or a part of one."""

    azimuth: Number = Field(None, description="Camera's horizontal angle in degrees; snaps to multiples of 45.")
    elevation: Number = Field(None, description="Camera's vertical angle in degrees; snaps to -30, 0, 30, 60.")
    distance: Number = Field(None, description="Camera's distance; snaps to 0.6, 1.0, 1.4, 1.8.")


class View(CameraFields):
    """A camera pose; absent fields come from the request's own camera fields."""


def _views(value: object) -> object:
    """`orbit` and `orbit:N` as lists of poses."""
    _check_length(value)
    if value is None or isinstance(value, list):
        return value
    orbit = _ORBIT.fullmatch(value) if isinstance(value, str) else None
    if orbit is None:
        raise wrong(f'a list of camera poses, "orbit" or "orbit:N" with N from 1 to {MAX_ORBIT}', value)
    return [{"azimuth": azimuth} for azimuth in orbit_azimuths(int(orbit[1] or MAX_ORBIT))]


_VIEWS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "array", "items": View.model_json_schema(), "minItems": 1},
        {"type": "string", "pattern": f"^orbit(:[1-{MAX_ORBIT}])?$"},
        {"type": "null"},
    ]
}


class EditFields(DrawFields, CameraFields):
    """How to edit. Absent and null mean the same."""

    views: Annotated[list[View] | None, BeforeValidator(_views), WithJsonSchema(_VIEWS_SCHEMA)] = Field(
        None,
        description="Several camera poses of one upload, one picture each, streamed as they are done: a list of poses "
        '(in a form: as JSON text), "orbit" (all eight azimuths) or "orbit:N". What a pose leaves out comes from '
        "elevation and distance.",
    )

    def cameras(self, prefix: str = "") -> tuple[CameraPose | None, ...]:
        """One pose for each view; without views that of the camera fields, or None.

        Raises:
            InvalidInput: an empty list of views, an empty view, or an azimuth beside views.
        """
        if self.views is None:
            return (snap(self.azimuth, self.elevation, self.distance),)
        if not self.views:
            raise InvalidInput(f"{prefix}views is empty: give at least one camera pose.", f"{prefix}views")
        if self.azimuth is not None:
            message = f"{prefix}azimuth cannot be combined with {prefix}views: each view has its own."
            raise InvalidInput(message, f"{prefix}azimuth")
        return tuple(self._pose(view, f"{prefix}views[{index}]") for index, view in enumerate(self.views))

    def _pose(self, view: View, field: str) -> CameraPose:
        elevation = self.elevation if view.elevation is None else view.elevation
        distance = self.distance if view.distance is None else view.distance
        pose = snap(view.azimuth, elevation, distance)
        if pose is None:
            raise InvalidInput(f"{field} is empty: give azimuth, elevation or distance.", field)
        return pose


def output_format(name: str | None, quality: int, field: str) -> OutputFormat:
    """The format called `name`; png if it is absent.

    Raises:
        InvalidInput: there is no such format.
    """
    known = FORMATS.get(default(name, "png").lower())
    if known is None:
        raise InvalidInput(f"{field} must be {listed(ENCODERS)}, got {echo(name)}.", field)
    return OutputFormat(known, quality)
