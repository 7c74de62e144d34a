"""Views: several camera poses of one upload, one picture each."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from serve_app.edits.camera import CameraPose, snap
from serve_app.errors import InvalidInput
from serve_app.ingress.fields import Number
from serve_app.ingress.validation import wrong

MAX_ORBIT = 8
"""The adapter knows eight azimuths; more views of an orbit would repeat some."""


class CameraFields(BaseModel):
    """A camera pose, or a part of one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    azimuth: Number = Field(None, description="Camera's horizontal angle in degrees; snaps to multiples of 45.")
    elevation: Number = Field(None, description="Camera's vertical angle in degrees; snaps to -30, 0, 30, 60.")
    distance: Number = Field(None, description="Camera's distance; snaps to 0.6, 1.0, 1.4, 1.8.")


class View(CameraFields):
    """A camera pose; what is absent comes from the request's own camera fields."""


def _listed(value: object) -> object:
    """`orbit` and `orbit:N` as the poses that they stand for."""
    if value is None or isinstance(value, list):
        return value
    name, _, number = value.partition(":") if isinstance(value, str) else ("", "", "")
    num_views = MAX_ORBIT if value == "orbit" else int(number) if number.isdecimal() and len(number) < 3 else 0
    if name != "orbit" or not 1 <= num_views <= MAX_ORBIT:
        raise wrong(f'a list of camera poses, "orbit" or "orbit:N" with N from 1 to {MAX_ORBIT}', value)
    return [{"azimuth": index * 360.0 / num_views} for index in range(num_views)]


_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "array", "items": View.model_json_schema(), "minItems": 1},
        {"type": "string", "pattern": f"^orbit(:[1-{MAX_ORBIT}])?$"},
        {"type": "null"},
    ]
}

Views = Annotated[list[View] | None, BeforeValidator(_listed), WithJsonSchema(_SCHEMA)]


def poses(
    views: Sequence[View] | None,
    azimuth: float | None,
    elevation: float | None,
    distance: float | None,
    *,
    prefix: str = "",
) -> tuple[CameraPose | None, ...]:
    """One pose for each picture asked for; without views the one of the camera fields, or None.

    Raises:
        InvalidInput: no view at all, a view that says nothing, or an azimuth beside views, which say their own.
    """
    if views is None:
        return (snap(azimuth, elevation, distance),)
    if not views:
        raise InvalidInput(f"{prefix}views is empty: give at least one camera pose.", f"{prefix}views")
    if azimuth is not None:
        message = f"{prefix}azimuth cannot stand beside {prefix}views: each view says its own."
        raise InvalidInput(message, f"{prefix}azimuth")
    return tuple(_pose(view, elevation, distance, f"{prefix}views[{index}]") for index, view in enumerate(views))


def _pose(view: View, elevation: float | None, distance: float | None, field: str) -> CameraPose:
    pose = snap(
        view.azimuth,
        view.elevation if view.elevation is not None else elevation,
        view.distance if view.distance is not None else distance,
    )
    if pose is None:
        raise InvalidInput(f"{field} is empty: give azimuth, elevation or distance.", field)
    return pose
