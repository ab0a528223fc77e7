"""Bootstrap confidence intervals for FID and KID, and for differences between two models.

All models are scored on the same resamples (the same source images, the same real images), so shared variation
cancels and the interval describes their difference. Features are never recomputed: a resample is a vector of counts
per image, and both distances need only matrices of inner products. An interval is the measured value plus or minus
1.96 bootstrap standard errors, because the bootstrap's mean is biased (resamples contain duplicates) while its
spread is not.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agit_core.scores.distances import kernel

Verdict = Literal["better", "worse", "noise"]
NORMAL_95 = 1.959963984540054
_FID_FULL_REPEATS = 200
"""Largest set with the full number of FID resamples; the cost of FID grows with the cube of the set's size."""


@dataclass(frozen=True)
class Interval:
    """95 % interval around a measured value."""

    value: float
    low: float
    high: float


def resamples(images: int, repeats: int, seed: int) -> Tensor:
    """Draw ``repeats`` resamples with replacement, as counts per image: float64 (repeats, images)."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(images, (repeats, images), generator=generator)
    return torch.zeros(repeats, images, dtype=torch.float64).scatter_add_(
        1, picks, torch.ones_like(picks, dtype=torch.float64)
    )


def kid_replicates(x: Tensor, y: Tensor, x_counts: Tensor, y_counts: Tensor) -> Tensor:
    """Unbiased KID over all images, per resample: float64 (R,).

    An image is never paired with itself, even if a resample contains it several times.

    Args:
        x, y: features (N, d) and (M, d).
        x_counts, y_counts: counts (R, N) and (R, M) from :func:`resamples`.
    """
    cross = ((x_counts @ kernel(x, y)) * y_counts).sum(1) / (x_counts.sum(1) * y_counts.sum(1))
    return _within(x, x_counts) + _within(y, y_counts) - 2 * cross


def _within(x: Tensor, counts: Tensor) -> Tensor:
    pairs = kernel(x, x).fill_diagonal_(0.0)
    weight = counts.sum(1) ** 2 - (counts**2).sum(1)
    # a resample that drew one image only has no pairs: NaN, ignored later
    return ((counts @ pairs) * counts).sum(1) / torch.where(weight > 0, weight, math.nan)


def fid_replicates(x: Tensor, y: Tensor, x_counts: Tensor, y_counts: Tensor) -> Tensor:
    """FID per resample: float64 (R,). Arguments as in :func:`kid_replicates`.

    With centred, weighted features X and Y, tr (S_x S_y)^(1/2) is the sum of the singular values of X Y^T, an
    N x M matrix, so no d x d matrix is needed.
    """
    x, y = x.double(), y.double()
    xx, yy, xy = x @ x.T, y @ y.T, x @ y.T
    with _threads(1 if max(len(x), len(y)) <= _FID_FULL_REPEATS else torch.get_num_threads()):
        return torch.stack([_fid(xx, yy, xy, w, v) for w, v in zip(x_counts, y_counts, strict=True)])


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set torch's thread count inside; small decompositions run faster on one thread than on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fid_repeats(repeats: int, images: int) -> int:
    """Number of resamples for FID with ``images`` per set: ``repeats`` reduced to limit the cost, at least 20."""
    share = (_FID_FULL_REPEATS / max(images, _FID_FULL_REPEATS)) ** 3
    return min(repeats, max(20, int(repeats * share)))


def _fid(xx: Tensor, yy: Tensor, xy: Tensor, w: Tensor, v: Tensor) -> Tensor:
    n, m = w.sum(), v.sum()
    means = w @ xx @ w / n**2 + v @ yy @ v / m**2 - 2 * (w @ xy @ v) / (n * m)
    spread_x = (w @ xx.diagonal() - w @ xx @ w / n) / (n - 1)
    spread_y = (v @ yy.diagonal() - v @ yy @ v / m) / (m - 1)
    centred = xy - (w @ xy / n)[None] - (xy @ v / m)[:, None] + w @ xy @ v / (n * m)
    weighted = w.sqrt()[:, None] * centred * v.sqrt()[None]
    # drop the zero rows and columns of images that were not drawn
    weighted = weighted[w > 0][:, v > 0]
    root = torch.linalg.svdvals(weighted).sum() / ((n - 1) * (m - 1)).sqrt()
    return means + spread_x + spread_y - 2 * root


def interval(value: float, replicates: Tensor, own_error: float = 0.0) -> Interval:
    """``value`` plus or minus 1.96 standard errors of its finite replicates.

    Args:
        own_error: additional standard error of ``value`` that the replicates do not include.
    """
    usable = replicates[torch.isfinite(replicates)]
    error = math.hypot(float(usable.std()), own_error) if len(usable) > 1 else math.inf
    return Interval(value, value - NORMAL_95 * error, value + NORMAL_95 * error)


def mean_interval(values: Tensor) -> Interval:
    """Interval of a mean over images from its closed-form standard error; NaN values are left out."""
    usable = values[torch.isfinite(values)].double()
    if not len(usable):
        return Interval(math.nan, math.nan, math.nan)
    error = float(usable.std()) / math.sqrt(len(usable)) if len(usable) > 1 else math.inf
    value = float(usable.mean())
    return Interval(value, value - NORMAL_95 * error, value + NORMAL_95 * error)


def verdict(difference: Interval, lower_is_better: bool = True) -> Verdict:
    """``better`` or ``worse``, or ``noise`` if the interval of (ours - theirs) contains zero."""
    if not (difference.low > 0 or difference.high < 0):
        return "noise"
    return "better" if (difference.high < 0) == lower_is_better else "worse"
