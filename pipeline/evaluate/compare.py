"""Metrics with intervals of a model and its opponents, on the same images and resamples.

Names are those of the contract: ``kid_target_a2b``, ``attention_iou_a``, ... A name without a direction or domain
(``kid_mean``) is the mean of both. KID is raw, not times 100.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from agit_core.scores import bootstrap
from agit_core.scores.bootstrap import Interval
from pipeline.config import EvaluateConfig
from pipeline.evaluate.feature_cache import Arrays
from pipeline.metrics import catalog
from pipeline.metrics.catalog import DIRECTIONS, lower_is_better
from pipeline.metrics.measure import Estimate, FeatureSets, Resamples


@dataclass
class Figures:
    """Metrics of one of the compared models.

    Attributes:
        metrics: values by contract name; None if not finite.
        replicates: values of distances over the bootstrap's resamples, (R,).
        whole: values over all images of distances that are reported as the mean over a few subsets (KID). This is the
            more precise estimate, increasingly so with more images, and the basis of differences.
        subset_error: standard error of the reported value as an estimate of ``whole``.
        values: values per image, for metrics that are means over images.
    """

    metrics: dict[str, float | None] = field(default_factory=dict)
    replicates: dict[str, Tensor] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)
    subset_error: dict[str, float] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    def put(self, name: str, value: float) -> None:
        self.metrics[name] = value if math.isfinite(value) else None

    def put_distance(self, name: str, found: Estimate) -> None:
        self.put(name, found.value)
        if found.std is not None:
            self.put(f"{name}_std", found.std)
        if found.replicates is not None:
            self.replicates[name] = found.replicates
        if found.whole is not None:
            self.whole[name] = found.whole
        if found.subset_error is not None:
            self.subset_error[name] = found.subset_error

    def interval(self, name: str) -> Interval | None:
        value = self.metrics.get(name)
        if value is None:
            return None
        if name in self.values:
            return bootstrap.mean_interval(self.values[name])
        if name not in self.replicates:
            return None
        return bootstrap.interval(value, self.replicates[name], self.subset_error.get(name, 0.0))


class Judge:
    """Scores models on equal terms: with the same real features, subsets and resamples."""

    def __init__(self, config: EvaluateConfig, seed: int, real_a: Tensor, real_b: Tensor) -> None:
        self.config = config
        self.seed = seed
        self.real = {"a": real_a, "b": real_b}
        self.warnings: list[str] = []
        self.counts: dict[str, int] = {"kid_subsets": config.subsets}
        repeats = config.bootstrap
        # translated and real images of a domain are resampled independently: they represent two samples of it
        self._drawn = {
            (role, domain): bootstrap.resamples(
                len(self.real[domain]), repeats, hash_seed(seed, role, domain)
            )
            for role in ("translated", "real")
            for domain in "ab"
        }
        self.fid_repeats = bootstrap.fid_repeats(repeats, max(len(real_a), len(real_b)))
        self.counts |= {"bootstrap": repeats, "bootstrap_fid": self.fid_repeats}

    def nothing(self, model: Figures) -> Figures:
        """The identity baseline: the source images as their own translation, with no attention.

        Args:
            model: values known by definition are included for the metrics that this model has.
        """
        figures = Figures()
        self._distances(figures, {direction: self.real[direction[0]] for direction in DIRECTIONS})
        for metric in catalog.per_image():
            for key in map(metric.key, DIRECTIONS):
                if metric.identity is not None and key in model.metrics:
                    figures.put(key, metric.identity)
        return figures

    def model(self, outcome: dict[str, Arrays]) -> Figures:
        """Metrics of a model from the result of :meth:`pipeline.evaluate.direction.Direction.score` per direction."""
        figures = Figures()
        self._distances(figures, {d: a["features"] if whole(a) else None for d, a in outcome.items()})
        for direction in DIRECTIONS:
            self._means(figures, direction, outcome[direction])
        return figures

    def _distances(self, figures: Figures, translated: dict[str, Tensor | None]) -> None:
        """Add the distances of both directions and their means; None for features that are not finite."""
        sets = {d: self._sets(d, features) for d, features in translated.items() if features is not None}
        for metric in catalog.distances():
            found = {direction: metric.compute(one) for direction, one in sets.items()}
            for direction in DIRECTIONS:
                if direction in found:
                    figures.put_distance(metric.key(direction), found[direction])
                else:
                    figures.metrics[metric.key(direction)] = None
            if len(found) == len(DIRECTIONS):
                one, other = found.values()
                figures.put_distance(metric.name, replace(one.mean(other), std=None))
            else:
                figures.metrics[metric.name] = None
        for direction, used in sets.items():
            self.counts |= {f"{name}_{direction}": count for name, count in used.counts.items()}
            self.warnings += [warning for warning in used.warnings if warning not in self.warnings]

    def _sets(self, direction: str, translated: Tensor) -> FeatureSets:
        source, target = direction[0], direction[2]
        drawn = None
        if self.config.bootstrap >= 2:
            drawn = Resamples(
                translated=self._drawn["translated", source],
                source=self._drawn["real", source],
                target=self._drawn["real", target],
                fid_repeats=self.fid_repeats,
            )
        config = self.config
        return FeatureSets(
            translated,
            self.real[source],
            self.real[target],
            config.subsets,
            config.subset_size,
            self.seed,
            drawn,
        )

    @staticmethod
    def _means(figures: Figures, direction: str, arrays: Arrays) -> None:
        broken = not whole(arrays)
        for metric in catalog.per_image():
            values, name = arrays.get(metric.name), metric.key(direction)
            if values is None:
                continue
            if values.ndim == 2:
                values = _best_candidate(values)
            usable = values[~torch.isnan(values)]
            if broken or not len(usable):
                figures.metrics[name] = None
                continue
            figures.put(name, float(usable.mean()))
            figures.values[name] = values


def _best_candidate(values: Tensor) -> Tensor:
    """Of (N, K) values the column (N,) with the highest mean; NaN rows, which are so for all, do not count."""
    return values[:, int(torch.nan_to_num(values.nanmean(dim=0), nan=-math.inf).argmax())]


def whole(arrays: Arrays) -> bool:
    """Whether all translated images are finite."""
    masked = arrays.get("finite_masked")
    return bool(arrays["finite"].all()) and (masked is None or bool(masked.all()))


def intervals(mine: Figures, others: dict[str, Figures]) -> dict[str, Any]:
    """Each metric with its 95 % interval and, per opponent, the difference with its interval and a verdict.

    ``{"kid_target_a2b": {"value", "low", "high", "do_nothing": {"difference", "low", "high", "verdict"},
    "champion": {...}}}``. A difference is ours minus theirs, for KID of all images; ``verdict`` is ours: better,
    worse or noise.
    """
    rows: dict[str, Any] = {}
    for name in mine.metrics:
        own = mine.interval(name)
        if own is None or not math.isfinite(own.low):
            continue
        rows[name] = {"value": own.value, "low": own.low, "high": own.high}
        better_when_lower = lower_is_better(name)
        for opponent, figures in others.items():
            difference = _difference(name, mine, figures)
            if better_when_lower is None or difference is None or not math.isfinite(difference.low):
                continue
            rows[name][opponent] = {
                "difference": difference.value,
                "low": difference.low,
                "high": difference.high,
                "verdict": bootstrap.verdict(difference, better_when_lower),
            }
    return rows


def _difference(name: str, mine: Figures, other: Figures) -> Interval | None:
    ours, theirs = mine.metrics.get(name), other.metrics.get(name)
    if ours is None or theirs is None:
        return None
    if name in mine.replicates:
        ours, theirs = mine.whole.get(name, ours), other.whole.get(name, theirs)
        return bootstrap.interval(ours - theirs, mine.replicates[name] - other.replicates[name])
    if name in other.values and other.values[name].shape == mine.values[name].shape:
        return bootstrap.mean_interval(mine.values[name] - other.values[name])
    return bootstrap.mean_interval(mine.values[name] - theirs)


def hash_seed(seed: int, *parts: str) -> int:
    """Derive a seed for one purpose, identical in every process."""
    return int.from_bytes(hashlib.sha256(repr((seed, parts)).encode()).digest()[:6], "big")
