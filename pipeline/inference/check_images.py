"""Images for comparing an exported model with the original."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from agit_core.augment import to_float
from agit_core.errors import BadInput, RunFailed
from agit_core.export import SMALLEST
from agit_core.model_folder import Model
from agit_core.networks import STRIDE
from agit_core.pictures import open_picture
from pipeline import storage
from pipeline.data.sources.builtin import draw
from pipeline.inference import inputs

GENERATED = "generated images"
LONGEST = 512
"""Longest side in pixels; larger photographs are scaled down, because the check tests numerics, not memory."""
OTHER = (0.75, 1.25)
"""Factors of height and width for the second size, which also changes the aspect ratio."""


@dataclass(frozen=True)
class CheckImages:
    """Images of one direction's source domain.

    Attributes:
        images: float (1, 3, H, W) in [-1, 1]; H and W are multiples of 4.
        source: their origin, for display.
    """

    images: Sequence[Tensor]
    source: str

    def resized(self) -> list[Tensor]:
        """The images at the second size, in batches of up to two of equal size."""
        other = [
            _at(image, [_side(n * f) for n, f in zip(image.shape[2:], OTHER, strict=True)])
            for image in self.images
        ]
        pairs: list[Tensor] = []
        for image in other:
            if pairs and pairs[-1].shape == (1, *image.shape[1:]):
                pairs[-1] = torch.cat([pairs[-1], image])
            else:
                pairs.append(image)
        return pairs


def choose(model: Model, direction: str, folder: str | None, count: int) -> CheckImages:
    """Up to ``count`` images from ``folder``, else from the model's test split, else generated ones.

    If the folder contains ``testA`` and ``testB``, each direction uses the images of its source domain.

    Raises:
        BadInput: ``folder`` contains no readable image.
    """
    split = "testA" if direction == "a2b" else "testB"
    if folder is not None:
        inside = storage.join(folder, split)
        return _read(inside if storage.list_(inside) else folder, count)
    data = str(model.lineage.get("data_uri") or "")
    if data:
        try:
            return _read(storage.join(data, split), count)
        except (BadInput, RunFailed, OSError):  # the data was moved or is not accessible here
            pass
    domain = "a" if direction == "a2b" else "b"
    pictures = [draw(0, "test", domain, index, model.image_size).image for index in range(count)]
    return CheckImages([_prepared(Image.fromarray(p)) for p in pictures], GENERATED)


def _read(uri: str, count: int) -> CheckImages:
    images: list[Tensor] = []
    for item in inputs.find(uri).items:
        if len(images) == count:
            break
        try:
            images.append(_prepared(Image.open(io.BytesIO(item.read()))))
        except (OSError, ValueError, Image.DecompressionBombError):
            continue  # damaged images do not matter for this check
    if not images:
        raise BadInput(f"no image in {uri} can be read; give another folder with --check")
    return CheckImages(images, uri)


def _prepared(picture: Image.Image) -> Tensor:
    """float (1, 3, H, W) in [-1, 1]: padded to the stride as at inference, or resized if too small or too large."""
    pixels = to_float(open_picture(picture).pixels)
    if max(pixels.shape[2:]) > LONGEST or min(pixels.shape[2:]) < SMALLEST:
        factor = min(1.0, LONGEST / max(pixels.shape[2:]))
        return _at(pixels, [_side(n * factor) for n in pixels.shape[2:]])
    height, width = pixels.shape[2:]
    return F.pad(pixels, (0, -width % STRIDE, 0, -height % STRIDE), mode="reflect")


def _side(length: float) -> int:
    return max(SMALLEST, round(length / STRIDE) * STRIDE)


def _at(image: Tensor, size: list[int]) -> Tensor:
    if list(image.shape[2:]) == size:
        return image
    return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True).clamp(-1, 1)
