"""What is foreground in a mask as people and programs store it: 0 and 255, classes, colours, opacity."""

from __future__ import annotations

import numpy as np
from PIL import Image

_FEW = 16
"""So many different values are classes; soft edges and probabilities have more."""
_DIM = 0.25
_TINT = 8
_VOID = (224, 224, 192)
"""Pascal VOC's colour of outlines and of what is not judged."""


def foreground(mask: Image.Image, lossless: bool = True) -> Image.Image:
    """A mask in grey, 255 on the foreground.

    Where opacity varies, it is the mask, as in cut-outs. A few colours are classes: black is the background (of a
    palette without black its first colour), and so is Pascal VOC's void. Of grey masks the brighter half is the
    foreground, but where nothing is that bright (0 and 1, or class numbers) everything except 0.

    Args:
        lossless: the file holds the values that were written; near-blacks are no classes otherwise, but noise.

    Raises:
        ValueError: it cannot be told what is meant: bright values beside classes, as 255 for "ignore", or colours
            without black.
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
            # a palette's colours may all be black
            return _black_and_white(np.asarray(mask) > 0 if mask.mode == "P" else values > 0)
        _refuse_mixed(values, half)
    return Image.fromarray((values // (half // 128)).astype(np.uint8))


def _coloured_classes(mask: Image.Image, colour: Image.Image) -> np.ndarray | None:
    """Where the foreground is, or None when the colours are greys or more than a palette's."""
    found = colour.getcolors(256)
    if found is None or all(max(rgb) - min(rgb) <= _TINT for _, rgb in found):  # type: ignore[arg-type, type-var]
        return None
    pixels = np.asarray(colour)
    background = ~pixels.any(axis=-1)
    if not background.any():
        if mask.mode != "P":
            raise ValueError(
                "it is coloured and nowhere black; make the background black and the object white"
            )
        background = np.asarray(mask) == 0
    void: np.ndarray = (pixels == _VOID).all(axis=-1)
    return ~(background | void)


def _refuse_mixed(values: np.ndarray, half: int) -> None:
    counts = np.bincount(values.ravel())
    different = np.flatnonzero(counts[1:]) + 1
    if len(different) <= _FEW and counts[1:half].sum() > _DIM * counts[1:].sum():
        shown = ", ".join(map(str, different[:4]))
        raise ValueError(
            f"its values ({shown}) are neither black and white nor classes alone; write 255 where the object is, else 0"
        )


def _black_and_white(where: np.ndarray) -> Image.Image:
    return Image.fromarray(where.astype(np.uint8) * 255)
