"""Where the camera of a pose stands in the toy world, and the rays that it sees along.

At elevation -30 the camera cannot go below the ground: it stands just above it and looks up, so that the horizon sinks
to the lower edge and the subject towers. Eye level, 30 and 60 are what they say.
"""

import math
from dataclasses import dataclass

import numpy as np

from serve_app.edits.camera import CameraPose
from serve_app.tiny.solids import Rays, Vector

_HALF_VIEW = math.tan(math.radians(26.5))


@dataclass(frozen=True)
class _Shot:
    """How one elevation is taken; angles in degrees, lengths in world units (the subject is 1.0 to 1.4 high).

    The eye is `radius` away at distance 1.0, on a circle `orbit` above the point at `height` over the origin, and looks
    down by `pitch`.
    """

    orbit: float
    pitch: float
    height: float
    radius: float


_SHOTS = {
    -30: _Shot(orbit=0, pitch=-15, height=0.16, radius=2.85),
    0: _Shot(orbit=0, pitch=0, height=0.55, radius=3.2),
    30: _Shot(orbit=30, pitch=24, height=0.55, radius=3.2),  # so that a strip of the horizon stays in the picture
    60: _Shot(orbit=60, pitch=60, height=0.55, radius=3.2),
}


def on_sphere(azimuth: float, elevation: float) -> Vector:
    around, above = math.radians(azimuth), math.radians(elevation)
    return math.sin(around) * math.cos(above), math.sin(above), math.cos(around) * math.cos(above)


def camera(pose: CameraPose, num_samples: int) -> tuple[Vector, Rays]:
    """The eye, and rays of unit depth: dx and dz (n, n), dy (n, 1), for the camera never rolls."""
    shot = _SHOTS[pose.elevation]
    x, y, z = (part * shot.radius * pose.distance for part in on_sphere(pose.azimuth, shot.orbit))
    eye = x, y + shot.height, z
    back, right = on_sphere(pose.azimuth, shot.pitch), on_sphere(pose.azimuth + 90, 0)
    up = on_sphere(pose.azimuth + 180, 90 - shot.pitch)
    steps = ((np.arange(num_samples, dtype=np.float32) + 0.5) * (2 / num_samples) - 1) * _HALF_VIEW
    across, down = steps[None, :], steps[:, None]
    dx, dz = (across * right[axis] - down * up[axis] - back[axis] for axis in (0, 2))
    return eye, (dx, -down * up[1] - back[1], dz)
