"""Sample pictures of a training run: the same images, again and again."""

from __future__ import annotations

import torch
from torch import Tensor

from agit_core.augment import to_uint8
from agit_core.networks import Networks
from agit_core.translation import translate

COLUMNS = ("real", "attention", "translated", "reconstructed")


@torch.no_grad()
def strips(networks: Networks, images: Tensor, direction: str) -> Tensor:
    """One strip per image, the :data:`COLUMNS` side by side: uint8 (N, 3, S, 4 S).

    Args:
        images: float32 (N, 3, S, S) in [-1, 1], of domain a for direction ``a2b``, of b for ``b2a``.
    """
    forth = (networks.generator_ab, networks.attention_a)
    back = (networks.generator_ba, networks.attention_b)
    if direction == "b2a":
        forth, back = back, forth
    there = translate(images, *forth)
    again = translate(there.output, *back)
    attention = (there.mask * 2 - 1).expand_as(images)
    return torch.cat([to_uint8(x) for x in (images, attention, there.output, again.output)], dim=-1)


def png(strip: Tensor) -> bytes:
    """A strip, uint8 (3, H, W), as a PNG file."""
    from torchvision.io import encode_png  # takes two seconds to load, and not everyone who trains draws

    return encode_png(strip.cpu()).numpy().tobytes()
