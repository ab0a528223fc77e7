"""Interpretation of mask files: binary, class indices, class colours or opacity become a foreground mask."""

from __future__ import annotations

import numpy as np
from PIL import Image

_FEW = 16
"""Largest number of distinct values that can be classes; soft edges and probabilities have more."""
_DIM = 0.25
"""Share of dark non-zero pixels above which class values are mixed with bright ones."""
_TINT = 8
"""Largest difference between channels of a colour that counts as grey."""
_VOID = (224, 224, 192)
"""Pascal VOC's colour for outlines and unlabelled regions."""


def foreground(mask: Image.Image, lossless: bool = True) -> Image.Image:
    """Convert a mask to greyscale, 255 on the foreground.

    A varying alpha channel is the mask, as in cut-outs. A few colours are classes: black is the background (in a
    palette without black, its first colour), and so is Pascal VOC's void; everything else is foreground. In grey masks
    the brighter half of the range is foreground; if no value is that bright (0 and 1, or class indices), everything
    except 0 is.

    Args:
        lossless: whether the file format preserves exact values; in lossy files, near-black values are noise.

    Raises:
        ValueError: ambiguous: bright values mixed with class indices, such as 255 for "ignore", or colours without
            black.
    """
    if mask.mode in {"RGBA", "LA"}:
        alpha = mask.getchannel("A")
        if len(set(alpha.getextrema())) > 1:
            return alpha
    if mask.mode.startswith("I"):
        values = np.asarray(mask).clip(0, 65535)
        half = 32768 if values.max(initial=0) > 255 else 128
    else:
        colour = mask.convert("RGB")
        if lossless and (classes := _coloured_classes(mask, colour)) is not None:
            return _black_and_white(classes)
        values, half = np.asarray(colour.convert("L")), 128
    if lossless:
        if values.max(initial=0) < half:
            # all colours of a palette may be black: use its indices
            return _black_and_white(np.asarray(mask) > 0 if mask.mode == "P" else values > 0)
        _refuse_mixed(values, half)
    return Image.fromarray((values // (half // 128)).astype(np.uint8))


def _coloured_classes(mask: Image.Image, colour: Image.Image) -> np.ndarray | None:
    """Foreground of a mask with class colours, bool (H, W); None if it is grey or has more than 256 colours."""
    colours = colour.getcolors(256)
    if colours is None or all(max(rgb) - min(rgb) <= _TINT for _, rgb in colours):  # type: ignore[arg-type, type-var]
        return None
    pixels = np.asarray(colour)
    background = ~pixels.any(axis=-1)
    if not background.any():
        if mask.mode != "P":
            raise ValueError("it has colours but no black; make the background black and the object white")
        background = np.asarray(mask) == 0
    void: np.ndarray = (pixels == _VOID).all(axis=-1)
    return ~(background | void)


def _refuse_mixed(values: np.ndarray, half: int) -> None:
    counts = np.bincount(values.ravel())
    different = np.flatnonzero(counts[1:]) + 1
    if len(different) <= _FEW and counts[1:half].sum() > _DIM * counts[1:].sum():
        shown = ", ".join(map(str, different[:4]))
        raise ValueError(
            f"its values ({shown}) mix classes with bright values; write 255 on the object and 0 elsewhere"
        )


def _black_and_white(where: np.ndarray) -> Image.Image:
    return Image.fromarray(where.astype(np.uint8) * 255)
