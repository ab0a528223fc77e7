"""Translation with attention (Eq 1) and the cycle."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Translation(NamedTuple):
    """One translated batch: what Eq 1 blends, and the blend."""

    output: Tensor
    """b' (N, 3, H, W) in [-1, 1]: the raw translation where the mask is 1, the source where it is 0."""
    mask: Tensor
    """m (N, 1, H, W) in [0, 1]: the attention of the source."""
    raw: Tensor
    """G(a) (N, 3, H, W) in [-1, 1]: the generator always sees and paints the whole image."""


def translate(
    image: Tensor,
    generator: Callable[[Tensor], Tensor],
    attention: Callable[[Tensor], Tensor] | None,
    threshold: float | None = None,
) -> Translation:
    """Eq 1: b' = m * G(a) + (1 - m) * a, with m = Att(a).

    Args:
        image: (N, 3, H, W) in [-1, 1].
        attention: None stands for a mask of ones (plain CycleGAN).
        threshold: at inference, mask values below it become 0.
    """
    raw = generator(image)
    mask = torch.ones_like(raw[:, :1]) if attention is None else attention(image)
    if threshold is not None:
        mask = torch.where(mask >= threshold, mask, torch.zeros_like(mask))
    return Translation(mask * raw + (1 - mask) * image, mask, raw)
