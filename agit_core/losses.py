"""Losses: adversarial (LSGAN or the paper's Eq 2), cycle consistency (Eq 3), optional identity and binarity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def adversarial(scores: Tensor, real: bool, kind: str) -> Tensor:
    """Adversarial loss of discriminator scores (N, 1, h, w) against the label ``real``, scalar.

    ``lsgan``: mean (s - t)^2 with t = 1 for real, 0 for fake (Mao et al. 2017, the authors' code). ``vanilla``:
    mean binary cross entropy of the logits, the paper's Eq 2 with the non-saturating generator loss.
    """
    if kind == "lsgan":
        return F.mse_loss(scores, torch.ones_like(scores) if real else torch.zeros_like(scores))
    if kind == "vanilla":
        target = torch.ones_like(scores) if real else torch.zeros_like(scores)
        return F.binary_cross_entropy_with_logits(scores, target)
    raise ValueError(f"unknown adversarial loss '{kind}'; use 'lsgan' or 'vanilla'")


def discriminator(real_scores: Tensor, fake_scores: Tensor, kind: str) -> Tensor:
    """Discriminator loss 0.5 * (loss on real + loss on fake), scalar."""
    return 0.5 * (adversarial(real_scores, True, kind) + adversarial(fake_scores, False, kind))


def cycle_consistency(reconstructed: Tensor, image: Tensor) -> Tensor:
    """Cycle consistency loss (Eq 3): mean |a'' - a|, scalar; images (N, 3, H, W) in [-1, 1]."""
    return F.l1_loss(reconstructed, image)


def identity(generated: Tensor, image: Tensor) -> Tensor:
    """CycleGAN's optional identity loss: mean |G_AB(b) - b|, scalar."""
    return F.l1_loss(generated, image)


def binarity(mask: Tensor) -> Tensor:
    """Deviation of a mask (N, 1, H, W) in [0, 1] from a binary one: the mean of 4 m (1 - m), scalar in [0, 1]."""
    return 4 * (mask * (1 - mask)).mean()


def binarity_ramp(progress: float) -> float:
    """Ramp of the binarity weight: 0 in the first quarter of training, 1 in the last, linear between.

    Starting late leaves early masks, which have not found their objects yet, free to move. ``progress``: share of
    the training done, in [0, 1].
    """
    return min(max(2 * progress - 0.5, 0.0), 1.0)
