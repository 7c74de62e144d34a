"""A toy world whose pictures teach and judge a tiny camera-edit model: a small still life under a wide sky.

A subject stands at the origin. Its front is marked by a stripe, and by a rug that lies before it; a smaller neighbour
stands at its right, a little to the front; hills and the glow of sun or moon lie in fixed directions.

Axes, as seen in the front view: x to the right, y up, z towards the camera. **Right is the viewer's right**: azimuth
grows counter-clockwise seen from above, so that at 90 ("right side view") the camera stands at +x, where the front view
has its right edge, and the subject's front points to the left edge of the picture. Tools round the angles adapter place
their camera in this way; its model card does not say.

Every array operation is one that IEEE 754 rounds exactly, so that equal input gives equal bytes.
"""

import math
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_app.edits.camera import AZIMUTH_WORDS, ELEVATION_WORDS, CameraPose
from serve_app.tiny.shots import camera, on_sphere
from serve_app.tiny.solids import SHAPES, Floats, Rays, Shape, Vector

Picture = NDArray[np.uint8]
Rgb = tuple[int, int, int]

DISTANCES = (0.6, 1.0, 1.8)
POSES = tuple(
    CameraPose(azimuth, elevation, distance)
    for azimuth in AZIMUTH_WORDS
    for elevation in ELEVATION_WORDS
    for distance in DISTANCES
)
"""All 96 poses of the adapter, in the order of `views`."""

COLOURS: dict[str, Rgb] = {
    "red": (212, 36, 44),
    "orange": (246, 128, 24),
    "yellow": (252, 214, 52),
    "green": (16, 134, 78),
    "blue": (34, 92, 214),
    "purple": (142, 58, 184),
}
GROUNDS: dict[str, Rgb] = {
    "grass": (126, 170, 74),
    "sand": (224, 192, 134),
    "snow": (236, 241, 248),
    "stone": (132, 134, 142),
}
_WHITE, _NAVY, _RUG = (250, 248, 240), (28, 34, 84), (206, 38, 104)
_STRIPES = {colour: _NAVY if colour in ("orange", "yellow") else _WHITE for colour in COLOURS}


@dataclass(frozen=True)
class Light:
    """Where the light stands in the world (degrees), and its colours; `sun` and `shade` multiply a surface's colour."""

    azimuth: float
    elevation: float
    zenith: Rgb
    horizon: Rgb
    glow: Rgb
    sun: Vector
    shade: Vector

    @property
    def direction(self) -> Vector:
        """The unit vector from the ground to the light."""
        return on_sphere(self.azimuth, self.elevation)


LIGHTS = {
    "day": Light(310, 48, (70, 140, 220), (206, 230, 246), (255, 250, 226), (0.62, 0.59, 0.52), (0.48, 0.51, 0.56)),
    "sunset": Light(310, 26, (84, 66, 142), (255, 160, 96), (255, 224, 130), (0.9, 0.5, 0.22), (0.46, 0.33, 0.42)),
    "night": Light(310, 40, (10, 14, 46), (62, 76, 136), (190, 205, 240), (0.36, 0.42, 0.58), (0.2, 0.24, 0.38)),
}


@dataclass(frozen=True)
class Thing:
    """A solid of `SHAPES` in one of `COLOURS`."""

    shape: str
    colour: str


@dataclass(frozen=True)
class Scene:
    """A still life: the subject, its neighbour or none, ground, light, and the subject's size (1.0 is usual)."""

    subject: Thing
    neighbour: Thing | None
    ground: str
    light: str
    size: float = 1.0


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene of which the neighbour, absent in one of five, has neither the subject's shape nor its colour."""
    shape, other_shape = rng.choice(list(SHAPES), 2, replace=False)
    colour, other_colour = rng.choice(list(COLOURS), 2, replace=False)
    return Scene(
        subject=Thing(str(shape), str(colour)),
        neighbour=Thing(str(other_shape), str(other_colour)) if rng.random() < 0.8 else None,
        ground=str(rng.choice(list(GROUNDS))),
        light=str(rng.choice(list(LIGHTS))),
        size=round(float(rng.uniform(0.92, 1.08)), 3),
    )


def is_held_out(scene: Scene) -> bool:
    """Whether the pair of things is one of the eighth kept for tests, on whatever ground and in whatever light."""
    things = [scene.subject, *([scene.neighbour] if scene.neighbour else [])]
    words = " ".join(f"{thing.colour} {thing.shape}" for thing in things)
    return zlib.crc32(words.encode()) % 8 == 0


def render(scene: Scene, pose: CameraPose, size: int = 64, antialiasing: int = 2) -> Picture:
    """The scene from the pose: uint8 (size, size, 3), each pixel the mean of `antialiasing` squared rays."""
    num_samples = size * antialiasing
    with np.errstate(divide="ignore", invalid="ignore"):  # a ray along an axis misses by inf or nan
        eye, rays = camera(pose, num_samples)
        light, solids = LIGHTS[scene.light], _solids(scene)
        canvas = np.empty((3, num_samples, num_samples), np.float32)
        _paint_backdrop(canvas, scene, solids, light, eye, rays)
        depth = np.full(num_samples**2, np.inf, np.float32)
        for solid in solids:
            _paint_solid(canvas.reshape(3, -1), depth, solid, light, eye, rays)
    steps = range(antialiasing)
    total = sum(canvas[:, row::antialiasing, column::antialiasing] for row in steps for column in steps)
    mean = np.asarray(total, np.float32) / antialiasing**2
    return np.clip(mean + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()


def views(scene: Scene, size: int = 64) -> Picture:
    """The scene from all of `POSES`: uint8 (96, size, size, 3)."""
    return np.stack([render(scene, pose, size) for pose in POSES])


def nearest_pose(picture: Picture, candidates: Picture) -> CameraPose:
    """The pose whose view, among the scene's `views`, has the least mean squared error to the picture."""
    errors = (candidates.astype(np.float32) - picture.astype(np.float32)) ** 2
    return POSES[int(errors.reshape(len(POSES), -1).mean(axis=1).argmin())]


def psnr(picture: Picture, truth: Picture) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal pictures."""
    error = float(np.mean((picture.astype(np.float64) - truth.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


# --- things in their places ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Solid:
    """A thing in its place; `stripe` is the colour of its front's mark, or its own."""

    shape: Shape
    colour: Rgb
    stripe: Rgb
    x: float
    z: float
    scale: float

    @property
    def radius(self) -> float:
        return self.shape.radius * self.scale

    @property
    def height(self) -> float:
        return self.shape.height * self.scale


# Halfway between two azimuths of the grid, so that from none of them it stands right before or behind the subject.
_NEIGHBOUR_AZIMUTH, _NEIGHBOUR_REACH, _NEIGHBOUR_SCALE = 67.5, 1.1, 0.56


def _solids(scene: Scene) -> list[_Solid]:
    thing, neighbour = scene.subject, scene.neighbour
    solids = [_Solid(SHAPES[thing.shape], COLOURS[thing.colour], _STRIPES[thing.colour], 0, 0, scene.size)]
    if neighbour is not None:
        x, _, z = on_sphere(_NEIGHBOUR_AZIMUTH, 0)
        place, own = (x * _NEIGHBOUR_REACH, z * _NEIGHBOUR_REACH), COLOURS[neighbour.colour]
        solids.append(_Solid(SHAPES[neighbour.shape], own, own, *place, _NEIGHBOUR_SCALE))
    return solids


# --- painting, on a canvas (3, n, n) of 0 to 255 ----------------------------------------------------------------------

_STRIPE_HALF_WIDTH = 0.3  # of the radius
_RUG_HALF_WIDTH, _RUG_NEAR, _RUG_FAR = 0.5, 0.74, 1.75
_GROUND_SLOPE = 0.3


def _paint_backdrop(canvas: Floats, scene: Scene, solids: list[_Solid], light: Light, eye: Vector, rays: Rays) -> None:
    dx, dy, dz = rays
    sky = int((dy > 0).sum())  # rows come from the top
    ground = GROUNDS[scene.ground]
    _paint_sky(canvas[:, :sky], ground, light, (dx[:sky], dy[:sky], dz[:sky]))
    t = -eye[1] / dy[sky:]
    x, z = eye[0] + t * dx[sky:], eye[2] + t * dz[sky:]
    bright, dark = _light_on_ground(x, z, solids, light)
    rug = (abs(x) < _RUG_HALF_WIDTH) & (z > _RUG_NEAR) & (z < _RUG_FAR)
    haze = t / (t + 26)
    for channel in range(3):
        shine = (bright * light.sun[channel] + light.shade[channel]) * dark
        lit = np.where(rug, np.float32(_RUG[channel]), np.float32(ground[channel])) * shine
        canvas[channel, sky:] = lit + (light.horizon[channel] - lit) * haze


def _light_on_ground(x: Floats, z: Floats, solids: list[_Solid], light: Light) -> tuple[Floats, Floats]:
    """The share of direct light that each point of the ground gets, and how dark the solids' feet make it."""
    lx, ly, lz = light.direction
    towards = np.clip((x * lx + z * lz) * 0.2, -1, 1)  # brighter on the light's side
    bright: Floats = _half_lambert(ly) * (1 + _GROUND_SLOPE * towards)
    dark: Floats = np.ones_like(x)
    for solid in solids:
        px, pz = x - solid.x, z - solid.z
        # The shadow is a capsule from the foot to where the top's shadow falls, softer the farther it falls.
        sx, sz = -lx / ly * solid.height * 0.85, -lz / ly * solid.height * 0.85
        along = np.clip((px * sx + pz * sz) * (1 / (sx * sx + sz * sz)), 0, 1)
        away = np.sqrt((px - along * sx) ** 2 + (pz - along * sz) ** 2)
        soft = 0.06 + 0.14 * along
        inside = _smooth((solid.radius * (1 - solid.shape.taper * along) - away) / soft * 0.5 + 0.5)
        bright *= 1 - 0.9 * inside
        foot = np.sqrt(px * px + pz * pz) - solid.radius
        dark *= 1 - 0.3 * _smooth(1 - foot * 2.6)
    return bright, dark


def _paint_sky(canvas: Floats, ground: Rgb, light: Light, rays: Rays) -> None:
    dx, dy, dz = rays
    flat = np.sqrt(dx * dx + dz * dz)
    ux, uz, rise = dx / flat, dz / flat, dy / flat
    lx, ly, lz = light.direction
    to_light = (dx * lx + dy * ly + dz * lz) / (flat * np.sqrt(1 + rise * rise)) * 0.5 + 0.5
    wide = to_light**2
    core = ((wide**2) ** 2) ** 2
    glow = 0.45 * wide + 0.5 * core**2
    climb = _smooth(rise * 1.1 + 0.1)
    # Two waves round the horizon, one of 360 degrees and one of 180, make one mountain and one hill.
    ridge = 0.11 - 0.09 * (0.62 * uz + 0.78 * ux) + 0.1 * ux * uz
    hill = np.clip((ridge - rise) * 60 + 0.5, 0, 1)
    for channel in range(3):
        air = light.horizon[channel] + (light.zenith[channel] - light.horizon[channel]) * climb
        air += (light.glow[channel] - air) * glow
        far = ground[channel] * (light.sun[channel] * 0.35 + light.shade[channel]) * 0.65 + light.horizon[channel] * 0.3
        canvas[channel] = air + (far - air) * hill


def _paint_solid(canvas: Floats, depth: Floats, solid: _Solid, light: Light, eye: Vector, rays: Rays) -> None:
    """Paint where the solid is nearer than `depth` (n²,), and write its own depth there; the canvas is (3, n²)."""
    from_here = eye[0] - solid.x, eye[1], eye[2] - solid.z
    chosen = _may_meet(from_here, rays, solid)
    dx, dz = (rays[axis].reshape(-1)[chosen] for axis in (0, 2))
    near = dx, np.broadcast_to(rays[1], rays[0].shape).reshape(-1)[chosen], dz
    t, (nx, ny, nz) = solid.shape.meet(from_here, near, solid.radius, solid.height)
    seen = t < depth[chosen]
    chosen, t, nx, ny, nz = chosen[seen], t[seen], nx[seen], ny[seen], nz[seen]
    depth[chosen] = t
    x, y, z = (start + t * ray[seen] for start, ray in zip(from_here, near, strict=True))
    lx, ly, lz = light.direction
    facing = nx * lx + ny * ly + nz * lz
    direct = (facing * 0.5 + 0.5) ** 2
    foot = 0.72 + 0.28 * _smooth(y * (2.5 / solid.height))
    stripe = (abs(x) < _STRIPE_HALF_WIDTH * solid.radius) & (z > 0)
    for channel in range(3):
        colour = np.where(stripe, np.float32(solid.stripe[channel]), np.float32(solid.colour[channel]))
        canvas[channel, chosen] = colour * (direct * light.sun[channel] + light.shade[channel]) * foot


def _may_meet(eye: Vector, rays: Rays, solid: _Solid) -> NDArray[np.intp]:
    """Which rays, by flat index, come near enough to the solid's middle to meet it."""
    (x, y, z), (dx, dy, dz) = (eye[0], eye[1] - solid.height / 2, eye[2]), rays
    half = x * dx + y * dy + z * dz
    reach = 2 * solid.radius**2 + (solid.height / 2) ** 2  # the half diagonal of a box, squared
    return np.flatnonzero(half * half > (dx * dx + dy * dy + dz * dz) * (x * x + y * y + z * z - reach))


def _half_lambert(facing: float) -> float:
    return (facing * 0.5 + 0.5) ** 2


def _smooth(share: Floats) -> Floats:
    """0 below 0, 1 above 1, and a smooth step between."""
    share = np.clip(share, 0, 1)
    return share * share * (3 - 2 * share)
