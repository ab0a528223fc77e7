"""Figures and their intervals, of a model and of what it is compared with, on the same images and resamples.

Names are those of the contract: ``kid_target_a2b``, ``attention_iou_a``, ... Without a direction or domain
(``kid_mean``) they are the mean of both. KID is raw, not times 100.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from agit_core.scores import bootstrap, distances
from agit_core.scores.bootstrap import Interval
from agit_core.scores.images import PSNR_CAP
from agit_core.stages import HEALTH_KEYS
from pipeline.config import EvaluateConfig
from pipeline.evaluate.feature_cache import Arrays
from pipeline.metrics.names import DIRECTIONS, DISTANCES, lower_is_better

_NOTHING = {"background_l1": 0.0, "background_psnr": PSNR_CAP, "background_ssim": 1.0, "cycle_l1": 0.0}
"""A translation that changes nothing: by definition, not measured."""
_ATTENTION = ("iou", "precision", "recall", "inside", "outside", *HEALTH_KEYS)


@dataclass
class Figures:
    """One competitor's figures.

    Attributes:
        metrics: by contract name; None where a value is not finite.
        replicates: the same over the bootstrap's resamples, (R,), for distances.
        whole: the same of all images, where the figure is the mean over a few subsets of them (KID). It is the better
            estimate of the two, by more the more images there are, and what differences are taken of.
        subset_error: the standard error of such a figure as an estimate of that.
        values: the same per image, for means over images.
    """

    metrics: dict[str, float | None] = field(default_factory=dict)
    replicates: dict[str, Tensor] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)
    subset_error: dict[str, float] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    def put(self, name: str, value: float) -> None:
        self.metrics[name] = value if math.isfinite(value) else None

    def mean(self, name: str, one: str, other: str) -> None:
        """What is known of the mean of two figures, besides itself; their errors may go together."""
        if one in self.replicates and other in self.replicates:
            self.replicates[name] = (self.replicates[one] + self.replicates[other]) / 2
        for known in (self.whole, self.subset_error):
            if one in known and other in known:
                known[name] = (known[one] + known[other]) / 2

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
    """Scores competitors on equal terms: the same real features, subsets and resamples for each of them."""

    def __init__(self, config: EvaluateConfig, seed: int, real_a: Tensor, real_b: Tensor) -> None:
        self.config = config
        self.seed = seed
        self.real = {"a": real_a, "b": real_b}
        self.warnings: list[str] = []
        self.counts: dict[str, int] = {"kid_subsets": config.subsets}
        repeats = config.bootstrap
        # Translated and real images of a domain are drawn apart: they stand for two samples of it.
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
        """Doing nothing: the source images taken as their own translation, which attends nowhere.

        Args:
            model: attention is compared where this one has it.
        """
        figures = Figures()
        for direction in DIRECTIONS:
            self._distances(figures, direction, self.real[direction[0]])
        self._both(figures)
        for direction in DIRECTIONS:
            for name, value in _NOTHING.items():
                figures.put(f"{name}_{direction[0] if name == 'cycle_l1' else direction}", value)
            for name in ("coverage", "iou", "recall", "inside", "outside"):
                if f"attention_{name}_{direction[0]}" in model.metrics:
                    figures.put(f"attention_{name}_{direction[0]}", 0.0)
        return figures

    def model(self, outcome: dict[str, Arrays]) -> Figures:
        """Figures of a model from what :meth:`pipeline.evaluate.direction.Direction.score` gave per direction."""
        figures = Figures()
        for direction in DIRECTIONS:
            arrays = outcome[direction]
            if whole(arrays):
                self._distances(figures, direction, arrays["features"])
            else:
                figures.metrics |= {f"{name}_{direction}": None for name in DISTANCES}
        self._both(figures)
        for direction in DIRECTIONS:
            self._means(figures, direction, outcome[direction])
        return figures

    def _distances(self, figures: Figures, direction: str, translated: Tensor) -> None:
        source, target = direction[0], direction[2]
        estimates = {
            name: distances.kid(
                translated, self.real[domain], self.config.subsets, self.config.subset_size, self.seed
            )
            for name, domain in (("kid_target", target), ("kid_source", source))
        }
        for name, estimate in estimates.items():
            figures.put(f"{name}_{direction}", estimate.mean)
            figures.put(f"{name}_{direction}_std", estimate.std)
            self.counts[f"kid_subset_size_{name[4:]}_{direction}"] = estimate.subset_size
            if estimate.warning and estimate.warning not in self.warnings:
                self.warnings.append(estimate.warning)
        figures.put(f"kid_mean_{direction}", sum(e.mean for e in estimates.values()) / 2)
        variance = sum(e.std**2 for e in estimates.values()) / 4
        figures.put(f"kid_mean_{direction}_std", math.sqrt(variance))
        figures.put(f"fid_{direction}", distances.fid(translated, self.real[target]))
        if self.config.bootstrap < 2:
            return
        drawn = self._drawn["translated", source]
        for name, domain in (("kid_target", target), ("kid_source", source)):
            replicates = bootstrap.kid_replicates(
                translated, self.real[domain], _with_all(drawn), _with_all(self._drawn["real", domain])
            )
            key, estimate = f"{name}_{direction}", estimates[name]
            figures.whole[key], figures.replicates[key] = float(replicates[0]), replicates[1:]
            figures.subset_error[key] = estimate.std / math.sqrt(self.config.subsets)
        figures.mean(f"kid_mean_{direction}", f"kid_target_{direction}", f"kid_source_{direction}")
        figures.replicates[f"fid_{direction}"] = bootstrap.fid_replicates(
            translated,
            self.real[target],
            drawn[: self.fid_repeats],
            self._drawn["real", target][: self.fid_repeats],
        )

    def _both(self, figures: Figures) -> None:
        for name in DISTANCES:
            pair = [figures.metrics[f"{name}_{direction}"] for direction in DIRECTIONS]
            figures.metrics[name] = None if None in pair else sum(v for v in pair if v is not None) / 2
            figures.mean(name, *(f"{name}_{direction}" for direction in DIRECTIONS))

    @staticmethod
    def _means(figures: Figures, direction: str, arrays: Arrays) -> None:
        domain = direction[0]
        named = {"cycle": f"cycle_l1_{domain}"}
        named |= {key: f"attention_{key}_{domain}" for key in _ATTENTION}
        named |= {f"background_{key}": f"background_{key}_{direction}" for key in ("l1", "psnr", "ssim")}
        named["everywhere"] = f"attention_iou_everywhere_{domain}"
        broken = not whole(arrays)
        for key, name in named.items():
            if key not in arrays:
                continue
            usable = arrays[key][~torch.isnan(arrays[key])]
            if broken or not len(usable):
                figures.metrics[name] = None
                continue
            figures.put(name, float(usable.mean()))
            figures.values[name] = arrays[key]


def _with_all(drawn: Tensor) -> Tensor:
    """The resamples, and before them every image once."""
    return torch.cat([torch.ones_like(drawn[:1]), drawn])


def whole(arrays: Arrays) -> bool:
    """Whether every translated image holds numbers only."""
    masked = arrays.get("finite_masked")
    return bool(arrays["finite"].all()) and (masked is None or bool(masked.all()))


def intervals(mine: Figures, others: dict[str, Figures]) -> dict[str, Any]:
    """Each figure with its 95 % interval and, per opponent, the difference with its own and a verdict.

    ``{"kid_target_a2b": {"value", "low", "high", "do_nothing": {"difference", "low", "high", "verdict"},
    "champion": {...}}}``. A difference is ours minus theirs, for KID of all images; ``verdict`` is ours: better,
    worse or noise.
    """
    told: dict[str, Any] = {}
    for name in mine.metrics:
        own = mine.interval(name)
        if own is None or not math.isfinite(own.low):
            continue
        told[name] = {"value": own.value, "low": own.low, "high": own.high}
        better_when_lower = lower_is_better(name)
        for opponent, figures in others.items():
            difference = _difference(name, mine, figures)
            if better_when_lower is None or difference is None or not math.isfinite(difference.low):
                continue
            told[name][opponent] = {
                "difference": difference.value,
                "low": difference.low,
                "high": difference.high,
                "verdict": bootstrap.verdict(difference, better_when_lower),
            }
    return told


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
    """A seed of its own for each purpose, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr((seed, parts)).encode()).digest()[:6], "big")
