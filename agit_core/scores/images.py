"""Image metrics: changes to the background, and the cycle's reconstruction error.

Differences are on a scale from 0 (black) to 1 (white). SSIM is computed by torchmetrics.
"""

from __future__ import annotations

import torch
from torch import Tensor

PSNR_CAP = 100.0
"""PSNR in dB reported for an unchanged background, where it would be infinite."""


def background(image: Tensor, translated: Tensor, outside: Tensor) -> dict[str, Tensor]:
    """``l1``, ``psnr`` and ``ssim`` per image over the pixels outside its objects, float64 (N,).

    SSIM is the mean local similarity over these pixels; its Gaussian window (sigma 1.5, 11 x 11) reaches a few
    pixels across the border. NaN for an image without background.

    Args:
        image, translated: float (N, 3, H, W) in [-1, 1].
        outside: bool (N, 1, H, W), True on the background.
    """
    # imported late: takes seconds
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, y = image.float() / 2 + 0.5, translated.float() / 2 + 0.5
    weight = outside.to(x.dtype)
    count = weight.flatten(1).sum(dim=1).double()
    count = torch.where(count > 0, count, torch.full_like(count, torch.nan))

    def over_background(values: Tensor) -> Tensor:
        return (values.mean(dim=1, keepdim=True) * weight).flatten(1).sum(dim=1).double() / count

    difference = x - y
    psnr = -10 * torch.log10(over_background(difference**2))
    _, local = structural_similarity_index_measure(
        x, y, data_range=1.0, reduction="none", return_full_image=True
    )
    return {
        "l1": over_background(difference.abs()),
        "psnr": psnr.clamp(max=PSNR_CAP),
        "ssim": over_background(local),
    }


def cycle_l1(image: Tensor, restored: Tensor) -> Tensor:
    """Mean absolute difference of each image from its reconstruction, float64 (N,); inputs in [-1, 1]."""
    return (image.float() - restored.float()).abs().flatten(1).mean(dim=1).double() / 2
