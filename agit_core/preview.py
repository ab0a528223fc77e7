"""Sample pictures during training, always of the same images."""

from __future__ import annotations

import torch
from torch import Tensor

from agit_core.augment import to_uint8
from agit_core.networks import Networks
from agit_core.translation import translate

COLUMNS = ("real", "attention", "translated", "reconstructed")


@torch.no_grad()
def strips(networks: Networks, images: Tensor, direction: str) -> Tensor:
    """Render one strip per image, with the :data:`COLUMNS` side by side: uint8 (N, 3, S, 4 S).

    Args:
        images: float32 (N, 3, S, S) in [-1, 1], from domain a for direction ``a2b``, from b for ``b2a``.
    """
    forth = (networks.generator_ab, networks.attention_a)
    back = (networks.generator_ba, networks.attention_b)
    if direction == "b2a":
        forth, back = back, forth
    translated = translate(images, *forth)
    restored = translate(translated.output, *back)
    attention = (translated.mask * 2 - 1).expand_as(images)
    return torch.cat([to_uint8(x) for x in (images, attention, translated.output, restored.output)], dim=-1)


def png(strip: Tensor) -> bytes:
    """Encode a strip, uint8 (3, H, W), as PNG."""
    from torchvision.io import encode_png  # imported late: takes two seconds, and few processes need it

    return encode_png(strip.cpu()).numpy().tobytes()
