"""One reading of pixels for every part: upright, sRGB, eight bits. Apart from torch, which preparing does without."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_LAB = ImageCms.createProfile("LAB")
_BITS = (8, 10, 12, 14, 16)
"""Depths that cameras and scanners store in 16 bits."""
_SAME = 2
"""A profile that moves no colour by more than this, of 255, is sRGB, whatever it is called."""
_DARK = 64
DEEP = "agit_deep"
"""Key of ``Image.info``: what :func:`deep_colour` said, from whoever opens a file and loads it before it is read."""
_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}


class Pixels(NamedTuple):
    """``colour``: RGB, upright, in sRGB; ``alpha``: mode L, or None where everything is opaque by its format;
    ``note``: what had to be assumed about the values, or None."""

    colour: Image.Image
    alpha: Image.Image | None
    note: str | None


def read(image: Image.Image) -> Pixels:
    """The pixels of an image of any mode.

    The orientation (EXIF, XMP or TIFF tag) and the colour profile are applied; grey, palette, CMYK, Lab and deep
    images become 8-bit RGB. A profile that cannot be used (broken, or of another colour space) is ignored.

    Raises:
        ValueError: values that cannot be scaled: outside of [0, 65535], or nearly black 16-bit colour.
        Exception: whatever Pillow's decoders raise about a damaged file.
    """
    deep = image.info.get(DEEP) or deep_colour(image)
    profile = image.info.get("icc_profile")
    upright = turned(image)
    upright.load()
    alpha, note = None, None
    if upright.mode.startswith("I") or upright.mode == "F":
        values, note = grey_of_wide(np.asarray(upright), wide=not upright.mode.startswith("I;16"))
        upright = Image.fromarray(values)
    elif upright.has_transparency_data:
        layered = upright.convert("LA" if upright.mode == "LA" else "RGBA")
        alpha, upright = layered.getchannel("A"), layered.convert(layered.mode[:-1])
    elif upright.mode not in {"L", "RGB", "CMYK", "LAB"}:
        upright = upright.convert("L" if upright.mode == "1" else "RGB")
    colour = _in_srgb(upright, profile)
    if deep and (top := max(int(high) for _, high in _extrema(colour))) < _DARK:
        raise ValueError(
            f"16-bit colours that use {top} of 255 parts of the range are next to black; scale them to 16 bits"
        )
    return Pixels(colour, alpha, note)


def turned(image: Image.Image) -> Image.Image:
    """The image as its file says that it is looked at; Pillow turns a TIFF by itself when it loads it."""
    if image.format == "TIFF":
        image.load()
    return ImageOps.exif_transpose(image) or image


def over_white(pixels: Pixels) -> Image.Image:
    """The colours where the image is opaque, white where it is not."""
    if pixels.alpha is None:
        return pixels.colour
    return Image.composite(pixels.colour, Image.new("RGB", pixels.colour.size, "white"), pixels.alpha)


def grey_of_wide(values: np.ndarray[Any, Any], wide: bool = True) -> tuple[np.ndarray[Any, Any], str | None]:
    """Grey of 16 or 32 bits as uint8, and a note where its range is a guess.

    The largest value decides: 32-bit values are in [0, 1], [0, 255] or, as 16-bit ones, in the range of the fewest
    bits of 8, 10, 12, 14 and 16 that hold it.

    Raises:
        ValueError: values outside of these, or not numbers.
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
    note = f"values end at {top:.0f}: read as {bits} bits" if guessed else None
    scaled = values >> 8 if bits == 16 and not wide else np.rint(values * (255.0 / full))
    return scaled.astype(np.uint8), note


def _extrema(image: Image.Image) -> tuple[tuple[float, float], ...]:
    return image.getextrema()  # type: ignore[return-value]


def deep_colour(image: Image.Image) -> bool:
    """Whether more than one channel has 16 bits, of which Pillow keeps the upper eight; known before loading only."""
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
            # a grey image may bear a profile of colours
            fitting = image.convert("RGB") if space == "RGB" and image.mode == "L" else image
            if fitting.mode == space:
                return ImageCms.applyTransform(fitting, transform) or image
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=64)  # building a transform takes longer than decoding, and a set has few profiles
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that a profile is for, and the way to sRGB; None when it is broken or changes nothing."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _SPACES.get(source.profile.xcolor_space, "")
        transform = ImageCms.buildTransform(source, _SRGB, mode, "RGB")
        if mode in {"RGB", "L"}:
            probe = _probe(mode)
            seen = ImageCms.applyTransform(probe, transform)
            moved = np.asarray(seen, np.int16) - np.asarray(probe.convert("RGB"), np.int16)
            if np.abs(moved).max() <= _SAME:
                return mode, None
        return mode, transform
    except (ImageCms.PyCMSError, OSError, ValueError, KeyError):
        return "", None


def _probe(mode: str) -> Image.Image:
    """Colours from all over the cube, or every grey."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    axis = np.linspace(0, 255, 9).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(27, 27, 3))
