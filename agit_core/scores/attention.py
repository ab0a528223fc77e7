"""How much a mask covers, whether it finds the object, and whether it is healthy."""

from __future__ import annotations

import torch
from torch import Tensor

from agit_core.stages import HEALTH_KEYS, mask_health

THRESHOLD = 0.5
"""Attention at or above it counts as attended when it is compared with a true mask."""


def coverage(mask: Tensor) -> Tensor:
    """Mean attention of each image: (N,) from (N, 1, H, W) in [0, 1]."""
    return mask.detach().double().flatten(1).mean(dim=1)


def agreement(mask: Tensor, truth: Tensor, threshold: float = THRESHOLD) -> dict[str, Tensor]:
    """``iou``, ``precision`` and ``recall`` of each image, float64 (N,).

    With P = [mask >= threshold] and T the true mask: |P and T| / |P or T|, / |P| and / |T|. NaN marks what is
    undefined and left out of means: everything for an image whose true mask is empty, the precision where
    nothing is attended.

    Args:
        mask: attention (N, 1, H, W) in [0, 1].
        truth: bool (N, 1, H, W).
    """
    predicted, truth = (mask.detach() >= threshold).flatten(1), truth.bool().flatten(1)
    both = (predicted & truth).sum(dim=1).double()
    either = (predicted | truth).sum(dim=1).double()
    attended, objects = predicted.sum(dim=1).double(), truth.sum(dim=1).double()
    blank = torch.full_like(both, torch.nan)
    return {
        "iou": torch.where(objects > 0, both / either, blank),
        "precision": torch.where((objects > 0) & (attended > 0), both / attended, blank),
        "recall": torch.where(objects > 0, both / objects, blank),
    }


def inside_outside(mask: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Mean attention ``inside`` and ``outside`` the true mask of each image, float64 (N,): no threshold decides.

    NaN for an image whose true mask is empty, and for the outside of one whose mask is full. Arguments as in
    :func:`agreement`.
    """
    attended, objects = mask.detach().double().flatten(1), truth.bool().flatten(1)
    inside = (attended * objects).sum(dim=1) / objects.sum(dim=1)
    outside = (attended * ~objects).sum(dim=1) / (~objects).sum(dim=1)
    return {"inside": inside, "outside": torch.where(objects.any(dim=1), outside, torch.nan)}


def everywhere(truth: Tensor) -> Tensor:
    """IoU (N,) of a mask of ones, which attends to everything: the figure to beat. NaN for empty masks."""
    share = truth.bool().flatten(1).double().mean(dim=1)
    return torch.where(share > 0, share, torch.full_like(share, torch.nan))


def health(mask: Tensor, tau: float) -> dict[str, float]:
    """The figures that training watches (``agit_core.stages.mask_health``), of a batch of masks."""
    return dict(zip(HEALTH_KEYS, mask_health(mask, tau).tolist(), strict=True))
