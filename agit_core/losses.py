"""The losses: adversarial (LSGAN or the paper's Eq 2), cycle consistency (Eq 3), optional identity and binarity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def adversarial(scores: Tensor, real: bool, kind: str) -> Tensor:
    """How far a discriminator's scores are from saying ``real`` (or not), as a scalar mean.

    ``lsgan``: mean (s - t)^2 with t = 1 or 0 (Mao et al. 2017, the authors' code). ``vanilla``: the mean
    binary cross entropy of the logits, the paper's Eq 2 with the non-saturating generator.
    """
    if kind == "lsgan":
        return F.mse_loss(scores, torch.ones_like(scores) if real else torch.zeros_like(scores))
    if kind == "vanilla":
        target = torch.ones_like(scores) if real else torch.zeros_like(scores)
        return F.binary_cross_entropy_with_logits(scores, target)
    raise ValueError(f"unknown adversarial loss '{kind}'; it is 'lsgan' or 'vanilla'")


def discriminator(real_scores: Tensor, fake_scores: Tensor, kind: str) -> Tensor:
    """0.5 * (loss on real + loss on fake), scalar."""
    return 0.5 * (adversarial(real_scores, True, kind) + adversarial(fake_scores, False, kind))


def cycle_consistency(reconstructed: Tensor, image: Tensor) -> Tensor:
    """Eq 3: the mean absolute difference |a'' - a|, scalar; images (N, 3, H, W) in [-1, 1]."""
    return F.l1_loss(reconstructed, image)


def identity(generated: Tensor, image: Tensor) -> Tensor:
    """CycleGAN's optional |G_AB(b) - b|, scalar."""
    return F.l1_loss(generated, image)


def binarity(mask: Tensor) -> Tensor:
    """How far a mask (N, 1, H, W) in [0, 1] is from black and white: the mean of 4 m (1 - m), scalar in [0, 1]."""
    return 4 * (mask * (1 - mask)).mean()


def binarity_ramp(progress: float) -> float:
    """0 in the first quarter of the training, 1 in the last, linear between; ``progress`` in [0, 1].

    Masks that have not found anything yet must stay able to move.
    """
    return min(max(2 * progress - 0.5, 0.0), 1.0)
