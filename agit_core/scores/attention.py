"""Attention metrics: coverage, agreement with true masks, and mask health."""

from __future__ import annotations

import torch
from torch import Tensor

from agit_core.stages import HEALTH_KEYS, mask_health

THRESHOLD = 0.5
"""Attention at or above this counts as attended in comparisons with a true mask."""


def coverage(mask: Tensor) -> Tensor:
    """Mean attention per image: float64 (N,) from (N, 1, H, W) in [0, 1]."""
    return mask.detach().double().flatten(1).mean(dim=1)


def agreement(mask: Tensor, truth: Tensor, threshold: float = THRESHOLD) -> dict[str, Tensor]:
    """``iou``, ``precision`` and ``recall`` per image, float64 (N,).

    With P = [mask >= threshold] and T the true mask: |P and T| / |P or T|, |P and T| / |P| and |P and T| / |T|.
    Undefined values are NaN and left out of means: all three if the true mask is empty, the precision if nothing
    is attended.

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
    """Mean attention ``inside`` and ``outside`` the true mask per image, float64 (N,), without a threshold.

    Both are NaN if the true mask is empty, ``outside`` also if it is full. Arguments as in :func:`agreement`.
    """
    attended, objects = mask.detach().double().flatten(1), truth.bool().flatten(1)
    inside = (attended * objects).sum(dim=1) / objects.sum(dim=1)
    outside = (attended * ~objects).sum(dim=1) / (~objects).sum(dim=1)
    return {"inside": inside, "outside": torch.where(objects.any(dim=1), outside, torch.nan)}


def everywhere(truth: Tensor) -> Tensor:
    """IoU (N,) of a mask of ones, the trivial baseline to beat. NaN for empty true masks."""
    share = truth.bool().flatten(1).double().mean(dim=1)
    return torch.where(share > 0, share, torch.full_like(share, torch.nan))


def health(mask: Tensor, tau: float) -> dict[str, float]:
    """Mask health of a batch by name, as in training (``agit_core.stages.mask_health``)."""
    return dict(zip(HEALTH_KEYS, mask_health(mask, tau).tolist(), strict=True))
