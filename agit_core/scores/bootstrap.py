"""Intervals for FID and KID, and for the difference of two models, by resampling the images.

Everything that is compared is scored on the same resamples (the same source images for every model, the same
real images), so what the models share cancels and the interval is about their difference. Resampled features
are never computed again: a resample is a vector of counts per image, and both distances need only the
matrices of inner products. An interval is the measured value plus or minus 1.96 bootstrap standard errors,
because the bootstrap's own mean is biased (a resample holds images twice) while its spread is not.
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
_FID_COMFORTABLE = 200
"""Up to this many images per set FID is resampled as often as asked; its cost grows with the cube."""


@dataclass(frozen=True)
class Interval:
    """95 % interval around a measured value."""

    value: float
    low: float
    high: float


def resamples(images: int, repeats: int, seed: int) -> Tensor:
    """Counts per image of ``repeats`` draws with replacement: float64 (repeats, images)."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(images, (repeats, images), generator=generator)
    return torch.zeros(repeats, images, dtype=torch.float64).scatter_add_(
        1, picks, torch.ones_like(picks, dtype=torch.float64)
    )


def kid_replicates(x: Tensor, y: Tensor, x_counts: Tensor, y_counts: Tensor) -> Tensor:
    """The unbiased KID of all images for every resample: float64 (R,).

    Within a set an image is never paired with itself, also where the resample holds it twice.

    Args:
        x, y: features (N, d) and (M, d).
        x_counts, y_counts: of :func:`resamples`, (R, N) and (R, M).
    """
    cross = ((x_counts @ kernel(x, y)) * y_counts).sum(1) / (x_counts.sum(1) * y_counts.sum(1))
    return _within(x, x_counts) + _within(y, y_counts) - 2 * cross


def _within(x: Tensor, counts: Tensor) -> Tensor:
    pairs = kernel(x, x).fill_diagonal_(0.0)
    weight = counts.sum(1) ** 2 - (counts**2).sum(1)
    # two images, both draws the same one: no pair is left, and the resample says nothing
    return ((counts @ pairs) * counts).sum(1) / torch.where(weight > 0, weight, math.nan)


def fid_replicates(x: Tensor, y: Tensor, x_counts: Tensor, y_counts: Tensor) -> Tensor:
    """FID for every resample: float64 (R,).

    With centred, weighted features X and Y, tr (S_x S_y)^(1/2) is the sum of the singular values of X Y^T, an
    N x M matrix, so no d x d matrix is needed.
    """
    x, y = x.double(), y.double()
    xx, yy, xy = x @ x.T, y @ y.T, x @ y.T
    with _threads(1 if max(len(x), len(y)) <= _FID_COMFORTABLE else torch.get_num_threads()):
        return torch.stack([_fid(xx, yy, xy, w, v) for w, v in zip(x_counts, y_counts, strict=True)])


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Many small decompositions wait longer for each other's threads than they take on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fid_repeats(repeats: int, images: int) -> int:
    """How many of ``repeats`` resamples FID uses with so many images per set: at least 20, if asked for."""
    share = (_FID_COMFORTABLE / max(images, _FID_COMFORTABLE)) ** 3
    return min(repeats, max(20, int(repeats * share)))


def _fid(xx: Tensor, yy: Tensor, xy: Tensor, w: Tensor, v: Tensor) -> Tensor:
    n, m = w.sum(), v.sum()
    means = w @ xx @ w / n**2 + v @ yy @ v / m**2 - 2 * (w @ xy @ v) / (n * m)
    spread_x = (w @ xx.diagonal() - w @ xx @ w / n) / (n - 1)
    spread_y = (v @ yy.diagonal() - v @ yy @ v / m) / (m - 1)
    centred = xy - (w @ xy / n)[None] - (xy @ v / m)[:, None] + w @ xy @ v / (n * m)
    weighted = w.sqrt()[:, None] * centred * v.sqrt()[None]
    # images that were not drawn are rows of zeros
    weighted = weighted[w > 0][:, v > 0]
    root = torch.linalg.svdvals(weighted).sum() / ((n - 1) * (m - 1)).sqrt()
    return means + spread_x + spread_y - 2 * root


def interval(value: float, replicates: Tensor, own_error: float = 0.0) -> Interval:
    """``value`` plus or minus 1.96 standard errors of its replicates (those that are numbers).

    Args:
        own_error: a standard error that ``value`` has and its replicates have not.
    """
    usable = replicates[torch.isfinite(replicates)]
    error = math.hypot(float(usable.std()), own_error) if len(usable) > 1 else math.inf
    return Interval(value, value - NORMAL_95 * error, value + NORMAL_95 * error)


def mean_interval(values: Tensor) -> Interval:
    """The same for a mean over images (NaN: no value for that image): its standard error has a closed form."""
    usable = values[torch.isfinite(values)].double()
    if not len(usable):
        return Interval(math.nan, math.nan, math.nan)
    error = float(usable.std()) / math.sqrt(len(usable)) if len(usable) > 1 else math.inf
    value = float(usable.mean())
    return Interval(value, value - NORMAL_95 * error, value + NORMAL_95 * error)


def verdict(difference: Interval, lower_is_better: bool = True) -> Verdict:
    """``noise`` when the interval of (ours - theirs) holds zero."""
    if not (difference.low > 0 or difference.high < 0):
        return "noise"
    return "better" if (difference.high < 0) == lower_is_better else "worse"
