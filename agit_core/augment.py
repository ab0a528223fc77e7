"""Augmentation: a stored uint8 image becomes network input by a random crop, a flip and scaling to [-1, 1]."""

from __future__ import annotations

import random

import torch
from torch import Tensor


def augment(image: Tensor, size: int, key: str, flip: bool) -> Tensor:
    """Crop uint8 (3, H, W) at random to (3, ``size``, ``size``); with ``flip``, mirror it with probability 0.5.

    ``key`` (seed, domain, epoch, index) seeds the draw: an item is augmented identically on every worker and
    after every resume, and domains A and B independently of each other.
    """
    draw = random.Random(key)
    _, height, width = image.shape
    top, left = draw.randint(0, height - size), draw.randint(0, width - size)
    crop = image[:, top : top + size, left : left + size]
    return crop.flip(-1) if flip and draw.random() < 0.5 else crop


def to_float(images: Tensor, out: Tensor | None = None) -> Tensor:
    """Convert uint8 in [0, 255] to float32 in [-1, 1], any shape; writes into ``out`` if given."""
    values = images.to(torch.float32) if out is None else out.copy_(images)
    return values.div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Convert float in [-1, 1] to uint8 in [0, 255], any shape."""
    return images.detach().float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
