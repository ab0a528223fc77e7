"""Attention metrics: coverage, agreement with true masks, and mask health."""

from __future__ import annotations

from functools import lru_cache

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


def auc(mask: Tensor, truth: Tensor) -> Tensor:
    """Area under the ROC curve of the soft mask, float64 (N,), without a threshold.

    The probability that attention is higher on a random pixel of the object than on a random background pixel, counting
    ties as half: 1 is perfect, any constant mask has 0.5. NaN if the true mask is empty or full. Arguments as in
    :func:`agreement`.
    """
    found = []
    for attended, objects in zip(mask.detach().flatten(1), truth.bool().flatten(1), strict=True):
        inside, outside = attended[objects], attended[~objects].sort().values
        below = torch.searchsorted(outside, inside).double()
        not_above = torch.searchsorted(outside, inside, right=True).double()
        found.append((below + not_above).mean() / (2 * len(outside)))  # NaN where either is empty
    return torch.stack(found)


def blob_iou(truth: Tensor) -> Tensor:
    """IoU of each image's true mask with each of :data:`BLOBS` fixed ellipses in the middle, float64 (N, BLOBS).

    The ellipse with the highest mean over all images is the best mask that does not depend on the image. Half axes are
    0.1, 0.15, ..., 0.7 of the side, independently. NaN for an empty true mask.

    Args:
        truth: bool (N, 1, H, W).
    """
    objects = truth.flatten(1).float()
    blobs = _blobs(*truth.shape[-2:]).to(objects.device)
    both = (objects @ blobs.T).double()
    either = objects.sum(dim=1, keepdim=True).double() + blobs.sum(dim=1).double() - both
    return torch.where(objects.any(dim=1, keepdim=True), both / either, torch.nan)


def centre_auc(truth: Tensor) -> Tensor:
    """AUC (N,) of a fixed mask that decreases radially from the middle, independent of the image."""
    y, x = _grid(*truth.shape[-2:])
    closeness = -(x**2 + y**2).expand(truth.shape).to(truth.device)
    return auc(closeness, truth)


_HALF_AXES = [0.05 * k for k in range(2, 15)]
BLOBS = len(_HALF_AXES) ** 2


@lru_cache(maxsize=4)
def _blobs(height: int, width: int) -> Tensor:
    """The ellipses, float32 (BLOBS, H * W) of 0 and 1."""
    y, x = _grid(height, width)
    return torch.stack(
        [((x / rx) ** 2 + (y / ry) ** 2 <= 1).flatten().float() for rx in _HALF_AXES for ry in _HALF_AXES]
    )


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Distance of each pixel's centre from the middle in parts of the side: (H, 1) and (1, W) in [-0.5, 0.5]."""
    y, x = ((torch.arange(side, dtype=torch.float64) + 0.5) / side - 0.5 for side in (height, width))
    return y[:, None], x[None, :]


def health(mask: Tensor, tau: float) -> dict[str, float]:
    """Mask health of a batch by name, as in training (``agit_core.stages.mask_health``)."""
    return dict(zip(HEALTH_KEYS, mask_health(mask, tau).tolist(), strict=True))
