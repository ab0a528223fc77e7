"""Canonical pixels: upright, sRGB, eight bits. Used by all packages; imports no torch, so that data preparation
stays light."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_LAB = ImageCms.createProfile("LAB")
_BITS = (8, 10, 12, 14, 16)
"""Bit depths that cameras and scanners store in 16-bit samples."""
_SAME = 2
"""A profile that changes no colour by more than this (of 255) counts as sRGB, whatever its name."""
_DARK = 64
"""16-bit colour whose largest value, of 255, is below this was stored with fewer bits: refused."""
DEEP = "agit_deep"
"""Key of ``Image.info`` for the result of :func:`deep_colour`, where a file is loaded before :func:`read` sees it."""
_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}


_DEPTHS, _COMPRESSION, _PHOTOMETRIC, _PLANES = 258, 259, 262, 284
"""Tags of TIFF."""


class Pixels(NamedTuple):
    """Result of :func:`read`."""

    colour: Image.Image
    """RGB, upright, in sRGB."""
    alpha: Image.Image | None
    """Mode L, or None for formats without transparency."""
    note: str | None
    """Assumption made about the range of the values, or None."""


def read(image: Image.Image) -> Pixels:
    """Convert an image of any mode to canonical pixels.

    Applies the orientation (EXIF, XMP or TIFF tag) and the colour profile; grey, palette, CMYK, Lab and 16- or
    32-bit images become 8-bit RGB. An unusable profile (broken, or for another colour space) is ignored.

    Raises:
        ValueError: values that cannot be scaled: outside [0, 65535], or nearly black 16-bit colour; a TIFF that Pillow
            misreads.
        Exception: anything that Pillow's decoders raise for a damaged file.
    """
    deep = image.info.get(DEEP) or deep_colour(image)
    _refuse_planes(image)
    profile = image.info.get("icc_profile")
    upright = turned(image)
    upright.load()
    alpha, note = None, None
    if upright.mode.startswith("I") or upright.mode == "F":
        values, note = grey_of_wide(np.asarray(upright), wide=not upright.mode.startswith("I;16"))
        inverted = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]
        upright = Image.fromarray(255 - values if inverted else values)
    elif upright.has_transparency_data:
        layered = upright.convert("LA" if upright.mode == "LA" else "RGBA")
        alpha, upright = layered.getchannel("A"), layered.convert(layered.mode[:-1])
    elif upright.mode not in {"L", "RGB", "CMYK", "LAB"}:
        upright = upright.convert("L" if upright.mode == "1" else "RGB")
    colour = _in_srgb(upright, profile)
    if deep and (top := max(int(high) for _, high in _extrema(colour))) < _DARK:
        raise ValueError(
            f"16-bit colours that use only {top}/255 of their range are nearly black; scale them to 16 bits"
        )
    return Pixels(colour, alpha, note)


def turned(image: Image.Image) -> Image.Image:
    """Apply the orientation stored in the file."""
    if image.format == "TIFF":
        image.load()  # Pillow itself applies the orientation of a TIFF on load
    return ImageOps.exif_transpose(image) or image


def over_white(pixels: Pixels) -> Image.Image:
    """Composite the image over a white background."""
    if pixels.alpha is None:
        return pixels.colour
    return Image.composite(pixels.colour, Image.new("RGB", pixels.colour.size, "white"), pixels.alpha)


def grey_of_wide(values: np.ndarray[Any, Any], wide: bool = True) -> tuple[np.ndarray[Any, Any], str | None]:
    """Scale 16- or 32-bit grey to uint8; also return a note if the range had to be guessed.

    The range is inferred from the largest value: the smallest of 8, 10, 12, 14 and 16 bits that holds it, or [0, 1]
    for 32-bit values (``wide``) up to 1.

    Raises:
        ValueError: values outside [0, 65535], or NaN.
    """
    low, top = float(values.min(initial=0)), float(values.max(initial=0))
    if not (low >= 0 and top <= 65535):
        raise ValueError("32-bit values outside [0, 65535]")
    if wide and top <= 1:
        bits, full = 0, 1
    else:
        bits = next(bits for bits in _BITS if top < 2**bits)
        full = 2**bits - 1
    guessed = bits > 8 and top != full if wide else bits < 16
    note = f"largest value {top:.0f}: read as {bits} bits" if guessed else None
    scaled = values >> 8 if bits == 16 and not wide else np.rint(values * (255.0 / full))
    return scaled.astype(np.uint8), note


def _refuse_planes(image: Image.Image) -> None:
    """Refuse uncompressed TIFFs with 16-bit channels in separate planes, which Pillow reads as if they had 8 bits."""
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    if tags.get(_PLANES) == 2 and tags.get(_COMPRESSION, 1) == 1 and max(tags.get(_DEPTHS, (8,))) > 8:
        raise ValueError(
            "16-bit channels in separate planes are not read; save the TIFF compressed or interleaved"
        )


def _extrema(image: Image.Image) -> tuple[tuple[float, float], ...]:
    return image.getextrema()  # type: ignore[return-value]


def deep_colour(image: Image.Image) -> bool:
    """Whether the file has several 16-bit channels, of which Pillow keeps the upper 8 bits. Call before loading."""
    tiles = getattr(image, "tile", None) or []
    return image.mode in {"RGB", "RGBA", "LA"} and any("16" in str(tile[3]) for tile in tiles)


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode == "LAB":
        return ImageCms.profileToProfile(image, _LAB, _SRGB, outputMode="RGB") or image
    if profile:
        space, transform = _transform(profile)
        if transform is not None and space == "L" != image.mode:
            transform = None
        if transform is not None:
            # a grey image may carry an RGB profile
            fitting = image.convert("RGB") if space == "RGB" and image.mode == "L" else image
            if fitting.mode == space:
                return ImageCms.applyTransform(fitting, transform) or image
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=64)  # building a transform takes longer than decoding, and a data set has few profiles
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The PIL mode of a profile and its transform to sRGB, or None if it is broken or has no effect."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _SPACES.get(source.profile.xcolor_space, "")
        transform = ImageCms.buildTransform(source, _SRGB, mode, "RGB")
        if mode in {"RGB", "L"}:
            probe = _probe(mode)
            converted = ImageCms.applyTransform(probe, transform)
            change = np.asarray(converted, np.int16) - np.asarray(probe.convert("RGB"), np.int16)
            if np.abs(change).max() <= _SAME:
                return mode, None
        return mode, transform
    except (ImageCms.PyCMSError, OSError, ValueError, KeyError):
        return "", None


def _probe(mode: str) -> Image.Image:
    """Test image with a grid over the RGB cube, or with all 256 grey levels for mode L."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    axis = np.linspace(0, 255, 9).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(27, 27, 3))
