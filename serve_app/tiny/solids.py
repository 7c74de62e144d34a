"""Solids that a ray can meet. All stand on the ground round the y axis, and the eye is outside them and above it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]  # float32 in fact; numpy's stubs widen it at every scalar
Vector = tuple[float, float, float]
Rays = tuple[Floats, Floats, Floats]
"""The x, y and z components of many vectors, as arrays of one shape."""
Hit = tuple[Floats, Rays]
"""How far along each ray the surface is, in lengths of the ray (inf or nan if missed), and its unit normals there."""


def _sphere(eye: Vector, rays: Rays, radius: float, height: float) -> Hit:
    (x, y, z), (dx, dy, dz) = (eye[0], eye[1] - height / 2, eye[2]), rays
    square, half = dx * dx + dy * dy + dz * dz, x * dx + y * dy + z * dz
    t = _first_root(square, half, x * x + y * y + z * z - radius * radius)
    return t, ((x + t * dx) / radius, (y + t * dy) / radius, (z + t * dz) / radius)


def _cylinder(eye: Vector, rays: Rays, radius: float, height: float) -> Hit:
    (x, y, z), (dx, dy, dz) = eye, rays
    t = _first_root(dx * dx + dz * dz, x * dx + z * dz, x * x + z * z - radius * radius)
    at_height = y + t * dy
    t = np.where((at_height >= 0) & (at_height <= height), t, np.inf)
    lid = (height - y) / dy
    on_lid = (lid > 0) & ((x + lid * dx) ** 2 + (z + lid * dz) ** 2 <= radius * radius) & (y > height)
    side = np.where(on_lid, 0, 1 / radius).astype(np.float32)
    t = np.where(on_lid, lid, t)
    return t, ((x + t * dx) * side, on_lid.astype(np.float32), (z + t * dz) * side)


def _cone(eye: Vector, rays: Rays, radius: float, height: float) -> Hit:
    (x, y, z), (dx, dy, dz) = eye, rays
    slope, below = radius / height, height - y
    steep = slope * slope
    t = _first_root(
        dx * dx + dz * dz - steep * dy * dy,
        x * dx + z * dz + steep * below * dy,
        x * x + z * z - steep * below * below,
    )
    depth = below - t * dy
    t = np.where((depth >= 0) & (depth <= height), t, np.inf)
    length = math.sqrt(1 + steep)
    outward = 1 / (depth * (slope * length))
    return t, ((x + t * dx) * outward, np.full_like(t, slope / length), (z + t * dz) * outward)


def _box(eye: Vector, rays: Rays, radius: float, height: float) -> Hit:
    low, high = (-radius, 0.0, -radius), (radius, height, radius)
    nears, fars = [], []
    for axis, ray in enumerate(rays):
        first, second = (low[axis] - eye[axis]) / ray, (high[axis] - eye[axis]) / ray
        nears.append(np.minimum(first, second))
        fars.append(np.maximum(first, second))
    near, far = np.maximum(np.maximum(*nears[:2]), nears[2]), np.minimum(np.minimum(*fars[:2]), fars[2])
    t = np.where((near <= far) & (near > 0), near, np.inf)
    x, y, z = (np.where(near == own, -np.sign(ray), 0).astype(np.float32) for own, ray in zip(nears, rays, strict=True))
    return t, (x, y, z)


def _first_root(square: Floats, half: Floats, constant: float) -> Floats:
    """The smaller positive root t of square·t² + 2·half·t + constant for an eye outside (constant > 0), else inf."""
    under = half * half - square * constant
    t = constant / (np.sqrt(np.maximum(under, 0)) - half)
    return np.where((under > 0) & (t > 0), t, np.inf)


@dataclass(frozen=True)
class Shape:
    """How rays meet the solid, its radius or half width, its height, and how much narrower its shadow's far end is."""

    meet: Callable[[Vector, Rays, float, float], Hit]
    radius: float
    height: float
    taper: float


SHAPES = {
    "box": Shape(_box, 0.5, 1.0, 0.0),
    "cylinder": Shape(_cylinder, 0.46, 1.3, 0.0),
    "sphere": Shape(_sphere, 0.62, 1.24, 0.1),
    "cone": Shape(_cone, 0.66, 1.36, 0.95),
}
