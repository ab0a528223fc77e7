"""The built-in data set: plain and striped animal-like objects on photograph-like backgrounds.

Both domains draw shapes, poses, light and backgrounds from the same distributions; only the coat differs (brown in
``a``, black and white stripes in ``b``). The object is therefore all that attention should find, and its mask is known
exactly. Every image is a pure function of (seed, split, domain, index).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

VERSION = 1
"""Part of the fingerprint; increase it when the images change."""

DOMAINS = {"a": "plain", "b": "striped"}
_SPLITS = {"train": 0, "test": 1}
_AREA = (0.12, 0.35)  # smallest and largest share of the image that the objects cover

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Picture:
    """``image``: uint8 (S, S, 3) RGB; ``mask``: uint8 (S, S), 255 on the object, 0 elsewhere."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]


def draw(seed: int, split: str, domain: str, index: int, size: int) -> Picture:
    """Draw one image of the set.

    Args:
        seed: seed of the whole set.
        split: ``train`` or ``test``.
        domain: ``a`` (plain) or ``b`` (striped).
        index: number of the image within its split and domain.
        size: side in pixels.
    """
    random = np.random.default_rng([VERSION, seed, _SPLITS[split], int(domain == "b"), index])
    x, y = _grid(size)
    light = random.uniform(0, 2 * np.pi)
    image = _background(random, x, y)
    distance, bodies = _shape(random, x, y)
    pixel = 2.0 / size
    # a soft shadow at the feet, in both domains
    image *= (1 - 0.25 * _step(0.12 - distance, 0.25) * _step(y - 0.1, 0.5))[..., None]
    coat = _striped(random, x, y, pixel, bodies) if domain == "b" else _plain(random, x, y)
    coat *= _shading(distance, light, pixel)[..., None]
    alpha = np.clip(0.5 - distance / (1.5 * pixel), 0, 1)[..., None]
    image = image * (1 - alpha) + coat * alpha
    image *= _illumination(random, x, y)[..., None]
    image += random.normal(0, 0.012, image.shape).astype(np.float32)
    pixels = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    return Picture(pixels, np.where(alpha[..., 0] >= 0.5, 255, 0).astype(np.uint8))


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Array, Array]:
    """Coordinates (x, y) of the pixel centres in [-1, 1], y downwards."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return x, y


@lru_cache(maxsize=4)
def _frequency(size: int) -> Array:
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]).astype(np.float32)
    f[0, 0] = np.inf
    return f


def _noise(random: np.random.Generator, size: int, exponent: float, stretch: float = 1.0) -> Array:
    """Noise texture with amplitude 1 / f**exponent, as in photographs; zero mean, unit standard deviation."""
    f = _frequency(size)
    if stretch != 1.0:
        rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None] * stretch
        f = np.hypot(rows, columns).astype(np.float32)
        f[0, 0] = np.inf
    white = random.standard_normal((2, *f.shape), dtype=np.float32)
    field = np.fft.irfft2((white[0] + 1j * white[1]) / f**exponent, s=(size, size))
    field -= field.mean()
    return (field / (field.std() + 1e-9)).astype(np.float32)


def _step(value: Array, width: float) -> Array:
    """Smooth step from 0 to 1, centred at 0."""
    t = np.clip(value / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _colour(hue: float, saturation: float, value: float) -> Array:
    """Convert HSV to RGB in [0, 1]; hue in turns."""
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    return (value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)


def _background(random: np.random.Generator, x: Array, y: Array) -> Array:
    """Background: sky over ground, or only foliage or ground; gradients of two hues with 1/f textures."""
    size = len(x)
    coarse = _noise(random, size, random.uniform(1.3, 1.8))
    fine = _noise(random, size, random.uniform(0.6, 1.0), stretch=random.uniform(0.5, 1.5))
    kind = random.random()
    ground_hue = random.uniform(0.10, 0.45) if random.random() < 0.85 else random.uniform(0, 1)
    ground = _colour(ground_hue, random.uniform(0.25, 0.65), random.uniform(0.3, 0.7))
    far = _colour(
        ground_hue + random.uniform(-0.08, 0.08), random.uniform(0.15, 0.5), random.uniform(0.35, 0.8)
    )
    depth = np.clip((y + 1) / 2 + 0.12 * coarse, 0, 1)[..., None]
    lower = far * (1 - depth) + ground * depth
    lower *= (1 + random.uniform(0.08, 0.2) * coarse + random.uniform(0.06, 0.16) * fine)[..., None]
    image = lower
    if kind < 0.65:
        high = _colour(random.uniform(0.5, 0.68), random.uniform(0.1, 0.55), random.uniform(0.6, 0.95))
        low = _colour(random.uniform(0, 1), random.uniform(0.02, 0.3), random.uniform(0.7, 0.95))
        height = np.clip((y + 1) / 1.4, 0, 1)[..., None]
        upper = high * (1 - height) + low * height
        upper *= (1 + 0.07 * coarse)[..., None]
        horizon = random.uniform(-0.7, 0.25) + random.uniform(-0.15, 0.15) * x + 0.05 * coarse
        share = _step(y - horizon, random.uniform(0.05, 0.4))[..., None]
        image = upper * (1 - share) + lower * share
    chroma = np.stack([_noise(random, size, 1.6), np.zeros_like(x), _noise(random, size, 1.6)], axis=-1)
    return np.clip(image + 0.025 * chroma, 0.02, 1.0)


def _shape(random: np.random.Generator, x: Array, y: Array) -> tuple[Array, list[tuple[float, float]]]:
    """Signed distance (negative inside, in units of the grid) to one or two objects, and their centres."""
    count = 2 if random.random() < 0.15 else 1
    while True:
        target = random.uniform(0.15, 0.34)
        scale = float(np.sqrt(target / count)) * 1.42
        centres = []
        distance = np.full_like(x, 9.0)
        for number in range(count):
            side = 0.0 if count == 1 else (number - 0.5) * random.uniform(0.8, 1.0)
            centre = (side + random.uniform(-0.28, 0.28) / count, random.uniform(-0.12, 0.28))
            centres.append(centre)
            distance = np.minimum(distance, _animal(random, x - centre[0], y - centre[1], scale))
        if _AREA[0] <= float((distance < 0).mean()) <= _AREA[1]:
            return distance, centres


def _animal(random: np.random.Generator, x: Array, y: Array, scale: float) -> Array:
    """Signed distance to a body, neck, head and four legs, joined by a smooth minimum."""
    facing = 1.0 if random.random() < 0.5 else -1.0
    tilt = random.uniform(-0.2, 0.2)
    u = (np.cos(tilt) * x + np.sin(tilt) * y) * facing / scale
    v = (np.cos(tilt) * y - np.sin(tilt) * x) / scale
    half = random.uniform(0.36, 0.58)
    thick = random.uniform(0.33, 0.44)
    head = (half + random.uniform(0.22, 0.46), -random.uniform(0.35, 0.75))
    reach = random.uniform(0.62, 0.82)
    parts = [
        (_capsule(u, v, (-half, 0.0), (half, random.uniform(-0.08, 0.08))), thick),
        (_capsule(u, v, (half, -0.1), head), random.uniform(0.17, 0.23)),
        (_capsule(u, v, head, (head[0] + 0.2, head[1] + 0.13)), random.uniform(0.14, 0.19)),
    ]
    for hip in (-half - 0.05, -half + 0.28, half - 0.28, half + 0.05):
        foot = (hip + random.uniform(-0.14, 0.14), reach)
        parts.append((_capsule(u, v, (hip, 0.12), foot), random.uniform(0.105, 0.14)))
    # smooth minimum (log-sum-exp) of the parts' distances
    softness = 0.045
    fields = np.stack([distance - radius for distance, radius in parts])
    lowest = fields.min(axis=0)
    joined = lowest - softness * np.log(np.exp((lowest - fields) / softness).sum(axis=0))
    return (joined * scale).astype(np.float32)


def _capsule(u: Array, v: Array, start: tuple[float, float], end: tuple[float, float]) -> Array:
    """Distance to a line segment."""
    du, dv = end[0] - start[0], end[1] - start[1]
    t = np.clip(((u - start[0]) * du + (v - start[1]) * dv) / (du * du + dv * dv + 1e-9), 0, 1)
    return np.hypot(u - start[0] - t * du, v - start[1] - t * dv)


def _shading(distance: Array, light: float, pixel: float) -> Array:
    """Lambertian shading of a rounded body, as a factor around 1."""
    height = np.sqrt(np.clip(-distance / 0.35, 0, 1))
    slope_y, slope_x = np.gradient(height, pixel)
    facing = np.cos(light) * slope_x - abs(np.sin(light)) * slope_y
    return np.asarray(0.94 - 0.16 * np.tanh(0.5 * facing) + 0.1 * height, dtype=np.float32)


def _illumination(random: np.random.Generator, x: Array, y: Array) -> Array:
    """Lighting of the whole image, as a factor around 1: a gradient and slight vignetting."""
    angle = random.uniform(0, 2 * np.pi)
    slope = random.uniform(0, 0.14)
    vignette = random.uniform(0, 0.1)
    return (1 + slope * (np.cos(angle) * x + np.sin(angle) * y) - vignette * (x * x + y * y)).astype(
        np.float32
    )


def _plain(random: np.random.Generator, x: Array, y: Array) -> Array:
    """Brown, ochre or chestnut coat with a faint texture."""
    base = _colour(random.uniform(0.045, 0.1), random.uniform(0.5, 0.8), random.uniform(0.4, 0.72))
    fur = 1 + 0.05 * _noise(random, len(x), 1.0)
    return base * fur[..., None]


def _striped(
    random: np.random.Generator, x: Array, y: Array, pixel: float, centres: list[tuple[float, float]]
) -> Array:
    """Black and white stripes with a period of about a tenth of the image, slightly curved and uneven."""
    angle = random.uniform(0, np.pi)
    period = random.uniform(6.0, 9.0) / 72 * 2
    cx, cy = centres[0]
    u = np.cos(angle) * (x - cx) + np.sin(angle) * (y - cy)
    v = np.cos(angle) * (y - cy) - np.sin(angle) * (x - cx)
    bend = random.uniform(-0.25, 0.25) * v * v + 0.012 * _noise(random, len(x), 1.8)
    wave = np.sin(2 * np.pi * (u + bend) / period + random.uniform(0, 2 * np.pi))
    # steep enough that the transition between black and white is about 1.5 pixels wide
    white = (0.5 + 0.5 * np.tanh(wave * 2.2 * max(1.0, period / pixel / 8)))[..., None]
    light = _colour(random.uniform(0.05, 0.15), random.uniform(0, 0.08), random.uniform(0.9, 1.0))
    dark = _colour(random.uniform(0, 0.1), random.uniform(0, 0.3), random.uniform(0.04, 0.12))
    return light * white + dark * (1 - white)
