"""Translation with attention (Eq 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_CPU_PIXELS = 256 * 256


class Translation(NamedTuple):
    """The terms of Eq 1 for one translated batch."""

    output: Tensor
    """b' (N, 3, H, W) in [-1, 1]: the raw translation where the mask is 1, the source where it is 0."""
    mask: Tensor
    """m (N, 1, H, W) in [0, 1]: attention on the source."""
    raw: Tensor
    """G(a) (N, 3, H, W) in [-1, 1]: the generator's output for the whole image, before blending."""


def translate(
    image: Tensor,
    generator: Callable[[Tensor], Tensor],
    attention: Callable[[Tensor], Tensor] | None,
    threshold: float | None = None,
) -> Translation:
    """Translate a batch by Eq 1: b' = m * G(a) + (1 - m) * a, with m = Att(a).

    Args:
        image: (N, 3, H, W) in [-1, 1].
        attention: attention network; None: a mask of ones (plain CycleGAN).
        threshold: set mask values below it to 0 (inference only).
    """
    raw = generator(image)
    mask = torch.ones_like(raw[:, :1]) if attention is None else attention(image)
    if threshold is not None:
        mask = torch.where(mask >= threshold, mask, torch.zeros_like(mask))
    return Translation(mask * raw + (1 - mask) * image, mask, raw)


def passes(images: Tensor, device: torch.device) -> Sequence[Tensor]:
    """Images (N, C, H, W) in the portions in which inference takes the least time, in order.

    On a CPU few at a time: the layers' results of 16 images of 256 pixels fit neither its caches nor what the
    allocator keeps, and each image then takes 1.6 times as long as alone. (A pass over less than 256 x 256 pixels
    is no faster.)
    """
    if device.type != "cpu":
        return (images,)
    return images.split(max(1, _CPU_PIXELS // (images.shape[-2] * images.shape[-1])))
