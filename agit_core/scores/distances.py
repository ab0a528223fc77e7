"""FID and KID between two sets of Inception features, computed by torchmetrics (an optional dependency).

KID (Binkowski et al. 2018) is the squared maximum mean discrepancy with the kernel

    k(x, y) = (x . y / d + 1)^3,   d = 2048,

as the unbiased estimate averaged over random subsets. FID (Heusel et al. 2017) is the Frechet distance between
two Gaussians, ||mu_x - mu_y||^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), and is biased upwards for few images.
Lower is more similar for both. KID is returned raw; papers print it times 100.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agit_core.errors import BadInput

MINIMUM = 2
"""Smallest number of images per set for which the distances are defined."""


@dataclass(frozen=True)
class Estimate:
    """KID averaged over subsets.

    ``std`` is the standard deviation between subsets, which share images: papers print it after +-, but it is not
    a confidence interval (see ``agit_core.scores.bootstrap``).
    """

    mean: float
    std: float
    subsets: int
    subset_size: int
    counts: tuple[int, int]
    warning: str | None = None


class _Identity(nn.Identity):
    """Pass-through feature extractor for torchmetrics: our features are computed once, outside, and cached."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features


def kid(x: Tensor, y: Tensor, subsets: int = 10, subset_size: int = 50, seed: int = 0) -> Estimate:
    """Kernel Inception Distance of features x (N, d) and y (M, d).

    If a set is smaller than ``subset_size``, subsets shrink to its size and the estimate carries a warning. Equal
    seeds draw equal subsets from sets of equal size, which keeps models comparable.

    Raises:
        BadInput: fewer than two images in a set, or features that are not finite.
    """
    _check(x, y, "KID")
    size = min(subset_size, len(x), len(y))
    warning = None
    if size < subset_size:
        warning = (
            f"KID subsets have {size} images instead of {subset_size}, the size of the smaller set; "
            "the deviation between subsets means little"
        )
    from torchmetrics.image.kid import KernelInceptionDistance  # takes seconds to import

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features in buffer.*")
        metric = KernelInceptionDistance(_Identity(x.shape[1]), subsets=subsets, subset_size=size)
    metric.update(y.double(), real=True)
    metric.update(x.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, std = metric.compute()
    return Estimate(float(mean), float(std), subsets, size, (len(x), len(y)), warning)


def fid(x: Tensor, y: Tensor) -> float:
    """Frechet Inception Distance of features x (N, d) and y (M, d).

    Both sets are first expressed in the space they span, which leaves the distance unchanged: with few images, the
    matrix square root is then of an (N + M) x (N + M) matrix instead of a d x d one of the same rank.

    Raises:
        BadInput: as :func:`kid`.
    """
    _check(x, y, "FID")
    from torchmetrics.image.fid import FrechetInceptionDistance  # takes seconds to import

    x, y = rotated(x, y)
    metric = FrechetInceptionDistance(_Identity(x.shape[1]))
    metric.update(y, real=True)
    metric.update(x, real=False)
    # rounding can make the distance of equal sets slightly negative
    return max(0.0, float(metric.compute()))


def rotated(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Express both sets in an orthonormal basis of their joint span, float64."""
    x, y = x.double(), y.double()
    if len(x) + len(y) >= x.shape[1]:
        return x, y
    basis = torch.linalg.qr(torch.cat([x, y]).T).Q
    return x @ basis, y @ basis


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """KID kernel k(x, y) of every pair, float64 (N, M)."""
    return (x.double() @ y.double().T / x.shape[1] + 1.0) ** 3


def distance_to_target(x: Tensor, source: Tensor, target: Tensor) -> Tensor | None:
    """Score of single images (N,): 0 resembles the average target image, 1 the average source image.

    This is the witness function of the KID between source and target, w(x) = mean k(x, source) - mean k(x, target),
    scaled so that its mean is 0 over the target images and 1 over the source images. None if source and target are
    indistinguishable.
    """

    def witness(images: Tensor) -> Tensor:
        return kernel(images, source).mean(dim=1) - kernel(images, target).mean(dim=1)

    low, high = witness(target).mean(), witness(source).mean()
    return None if high - low <= 1e-9 else (witness(x) - low) / (high - low)


def _check(x: Tensor, y: Tensor, name: str) -> None:
    if min(len(x), len(y)) < MINIMUM:
        raise BadInput(
            f"{name} needs at least {MINIMUM} images in each set, not {len(x)} and {len(y)}; "
            "add test images or raise evaluate.max_images"
        )
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise BadInput(
            f"{name} got features that are not finite; check the translated images and the weights"
        )
