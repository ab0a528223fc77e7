"""Inputs of the catalogue's metrics: images with their translations, and Inception features of image sets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from agit_core.scores import attention, bootstrap, distances, images
from agit_core.stages import HEALTH_KEYS

PAINTED = 0.5
"""Without true masks, the background is where the predicted attention is below this."""


@dataclass(frozen=True)
class Translated:
    """A batch of one domain's images with their translations; values shared by several metrics are computed once.

    Attributes:
        real, translated: float (N, 3, H, W) in [-1, 1].
        mask: attention (N, 1, H, W) in [0, 1].
        restore: translates back, i.e. computes the reconstructed images.
        tau: from which attention on the discriminator of the second stage sees a pixel.
        truth: true masks, bool (N, 1, H, W), where each image has one.
    """

    real: Tensor
    translated: Tensor
    mask: Tensor
    restore: Callable[[], Tensor]
    tau: float
    truth: Tensor | None = None

    @property
    def cycle_l1(self) -> Tensor:
        return images.cycle_l1(self.real, self.restore())

    @property
    def coverage(self) -> Tensor:
        return attention.coverage(self.mask)

    @cached_property
    def health(self) -> dict[str, Tensor]:
        """:data:`agit_core.stages.HEALTH_KEYS` of each image."""
        each = [attention.health(mask[None], self.tau) for mask in self.mask]
        return {key: torch.tensor([one[key] for one in each], dtype=torch.float64) for key in HEALTH_KEYS}

    @cached_property
    def agreement(self) -> dict[str, Tensor]:
        return attention.agreement(self.mask, self._true())

    @cached_property
    def inside_outside(self) -> dict[str, Tensor]:
        return attention.inside_outside(self.mask, self._true())

    @property
    def everywhere(self) -> Tensor:
        return attention.everywhere(self._true())

    @property
    def blob(self) -> Tensor:
        return attention.blob_iou(self._true())

    @property
    def auc(self) -> Tensor:
        return attention.auc(self.mask, self._true())

    @property
    def centre_auc(self) -> Tensor:
        return attention.centre_auc(self._true())

    @cached_property
    def background(self) -> dict[str, Tensor]:
        """Outside the true masks, or where there are none outside the predicted attention."""
        outside = self.mask < PAINTED if self.truth is None else ~self.truth
        return images.background(self.real, self.translated, outside)

    def _true(self) -> Tensor:
        assert self.truth is not None, "this metric is one of images with true masks: on='truth'"
        return self.truth


@dataclass(frozen=True)
class Estimate:
    """A distance between two sets.

    Attributes:
        value: as reported.
        std: between subsets, which papers print behind the sign +-.
        whole: of all images, where ``value`` is the mean over a few subsets of them.
        subset_error: the standard error of ``value`` as an estimate of ``whole``.
        replicates: over the bootstrap's resamples, (R,); None without them.
    """

    value: float
    std: float | None = None
    whole: float | None = None
    subset_error: float | None = None
    replicates: Tensor | None = None

    def mean(self, other: Estimate) -> Estimate:
        """Of two estimates; the errors of their values may go together, so they are averaged, too."""

        def half(one: float | None, two: float | None) -> float | None:
            return None if one is None or two is None else (one + two) / 2

        return Estimate(
            (self.value + other.value) / 2,
            None if self.std is None or other.std is None else math.hypot(self.std, other.std) / 2,
            half(self.whole, other.whole),
            half(self.subset_error, other.subset_error),
            None
            if self.replicates is None or other.replicates is None
            else (self.replicates + other.replicates) / 2,
        )


@dataclass(frozen=True)
class Resamples:
    """Counts per image of the bootstrap's draws, (R, images); see :mod:`agit_core.scores.bootstrap`."""

    translated: Tensor
    source: Tensor
    target: Tensor
    fid_repeats: int
    """Number of draws that FID uses, the first ones."""


@dataclass(frozen=True)
class FeatureSets:
    """Inception features, float32 (N, 2048), of translated images and of the real ones of both domains.

    Attributes:
        subsets, subset_size, seed: of KID.
        drawn: None for figures without intervals.
        counts, warnings: what the computation has to report about itself.
    """

    translated: Tensor
    source: Tensor
    target: Tensor
    subsets: int
    subset_size: int
    seed: int
    drawn: Resamples | None = None
    counts: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    _kid: dict[str, Estimate] = field(default_factory=dict)

    def kid(self, against: Literal["target", "source"]) -> Estimate:
        """KID between the translated images and the real ones of a domain, computed once."""
        if against not in self._kid:
            self._kid[against] = self._measured_kid(against)
        return self._kid[against]

    def _measured_kid(self, against: Literal["target", "source"]) -> Estimate:
        real = self.target if against == "target" else self.source
        found = distances.kid(self.translated, real, self.subsets, self.subset_size, self.seed)
        self.counts[f"kid_subset_size_{against}"] = found.subset_size
        if found.warning:
            self.warnings.append(found.warning)
        if self.drawn is None:
            return Estimate(found.mean, found.std)
        drawn = self.drawn.target if against == "target" else self.drawn.source
        replicates = bootstrap.kid_replicates(
            self.translated, real, _with_all(self.drawn.translated), _with_all(drawn)
        )
        error = found.std / math.sqrt(self.subsets)
        return Estimate(found.mean, found.std, float(replicates[0]), error, replicates[1:])

    def fid(self) -> Estimate:
        """FID between the translated images and the real ones of the target."""
        value = distances.fid(self.translated, self.target)
        if self.drawn is None:
            return Estimate(value)
        first = self.drawn.fid_repeats
        replicates = bootstrap.fid_replicates(
            self.translated, self.target, self.drawn.translated[:first], self.drawn.target[:first]
        )
        return Estimate(value, replicates=replicates)


def _with_all(drawn: Tensor) -> Tensor:
    """Prepend the full set (every image once) to the resamples."""
    return torch.cat([torch.ones_like(drawn[:1]), drawn])
