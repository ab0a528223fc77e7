"""Catalogue of metrics: name, computation, better end, and formatting of each.

Evaluation, intervals, gate, searches, tables, reports, model cards and MLflow use this list, so adding a metric takes
one entry. Names in files and in ``--json`` are ``NAME_PLACE``: ``kid_target_a2b``, ``attention_iou_a``. A name without
a place is the mean of both. Values there are raw; ``scale`` applies only to displays for people.

Nothing here imports PyTorch: commands that only show metrics start quickly.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from agit_core.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.metrics.measure import Estimate, FeatureSets, Translated

DIRECTIONS = ("a2b", "b2a")
DOMAINS = ("a", "b")
NOTHING = "do_nothing_"
"""Prefix of the identity baseline in the flat ``metrics`` of an evaluation."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Properties common to all metrics.

    Attributes:
        name: without a place.
        places: the directions, or the domains where it belongs to source images or their attention.
        better: which end is better; None where neither is, as for coverage.
        label: display name, including the scale.
        hint: a phrase that explains its values.
        judged: the identity baseline (changing nothing) is a fair opponent.
        scale, digits, unit: how a value is shown.
    """

    name: str
    label: str
    hint: str
    better: Literal["lower", "higher"] | None
    places: tuple[str, str] = DIRECTIONS
    judged: bool = False
    scale: float = 1.0
    digits: int = 2
    unit: str = ""

    def key(self, direction: str) -> str:
        """The name in an evaluation's ``metrics``, of a direction or of its source domain."""
        return f"{self.name}_{direction if direction in self.places else direction[0]}"

    @property
    def keys(self) -> tuple[str, ...]:
        """All its names: of the mean of both places, and of each."""
        return (self.name, *(f"{self.name}_{place}" for place in self.places))

    def number(self, value: float, sign: str = "") -> str:
        """Format a value without its unit."""
        text = f"{value * self.scale:{sign}.{self.digits}f}"
        return re.sub(r"^-(0(\.0+)?)$", r"\1", text).replace("-", "−")

    def text(self, value: float | None) -> str:
        """Format a value with its unit; empty for None."""
        return "" if value is None else self.number(value) + self.unit


@dataclass(frozen=True, kw_only=True)
class Distance(Metric):
    """Distance between a direction's translated images and real ones; its identity baseline is measured."""

    compute: Callable[[FeatureSets], Estimate]


@dataclass(frozen=True, kw_only=True)
class PerImage(Metric):
    """Mean of a per-image value.

    Attributes:
        compute: float64 (N,) of a batch; NaN where it is undefined for an image, which is left out of the mean. Or
            (N, K) of K candidates that are the same for every image: the figure is that of the one with the highest
            mean.
        on: ``test`` images; those with a true mask (``truth``); or those with a true mask and, in a domain that has
            none, the test images (``background``).
        attention: only models with attention have it.
        identity: the value of a translation that changes nothing and attends nowhere, by definition; None where that
            has none.
    """

    compute: Callable[[Translated], Tensor]
    on: Literal["test", "truth", "background"]
    attention: bool = False
    identity: float | None = None


KID_TARGET = Distance(
    name="kid_target",
    label="KID to the target × 100",
    hint="lower is closer to real images",
    better="lower",
    judged=True,
    scale=100,
    compute=lambda sets: sets.kid("target"),
)
"""The metric of headlines: the one distance that does not favour doing nothing."""
KID_MEAN = Distance(
    name="kid_mean",
    label="KID, target and source × 100",
    hint="mean of the two; doing nothing has a head start",
    better="lower",
    judged=True,
    scale=100,
    compute=lambda sets: sets.kid("target").mean(sets.kid("source")),
)
COVERAGE = PerImage(
    name="attention_coverage",
    label="Attention, coverage",
    hint="share of the image",
    better=None,
    places=DOMAINS,
    scale=100,
    digits=0,
    unit=" %",
    on="test",
    attention=True,
    identity=0.0,
    compute=lambda batch: batch.coverage,
)
IOU = PerImage(
    name="attention_iou",
    label="Attention, IoU with the masks",
    hint="overlap with the true masks; higher is better",
    better="higher",
    places=DOMAINS,
    scale=100,
    digits=0,
    unit=" %",
    on="truth",
    attention=True,
    identity=0.0,
    compute=lambda batch: batch.agreement["iou"],
)

EVERYWHERE = PerImage(
    name="attention_iou_everywhere",
    label="IoU of attending everywhere",
    hint="IoU of a mask of ones",
    better=None,
    places=DOMAINS,
    scale=100,
    digits=0,
    unit=" %",
    on="truth",
    attention=True,
    compute=lambda batch: batch.everywhere,
)
BLOB = PerImage(
    name="attention_iou_blob",
    label="IoU of a fixed blob",
    hint="the best centred ellipse, one for all images, fitted to the true masks",
    better=None,
    places=DOMAINS,
    scale=100,
    digits=0,
    unit=" %",
    on="truth",
    attention=True,
    compute=lambda batch: batch.blob,
)
"""The yardstick for attention: what knowing only that objects are in the middle achieves."""

METRICS: tuple[Distance | PerImage, ...] = (
    KID_TARGET,
    Distance(
        name="kid_source",
        label="KID to the source × 100",
        hint="about 0 for doing nothing, which returns the source itself",
        better="lower",
        scale=100,
        compute=lambda sets: sets.kid("source"),
    ),
    KID_MEAN,
    Distance(
        name="fid",
        label="FID to the target",
        hint="biased upwards with few images",
        better="lower",
        judged=True,
        digits=1,
        compute=lambda sets: sets.fid(),
    ),
    PerImage(
        name="background_l1",
        label="Background change, L1",
        hint="outside the mask; 0: unchanged",
        better="lower",
        digits=4,
        on="background",
        identity=0.0,
        compute=lambda batch: batch.background["l1"],
    ),
    PerImage(
        name="background_psnr",
        label="Background, PSNR",
        hint="outside the mask; higher: less changed",
        better="higher",
        digits=1,
        unit=" dB",
        on="background",
        identity=100.0,  # the cap of agit_core.scores.images, where PSNR is infinite
        compute=lambda batch: batch.background["psnr"],
    ),
    PerImage(
        name="background_ssim",
        label="Background, SSIM",
        hint="outside the mask; 1: unchanged",
        better="higher",
        digits=3,
        on="background",
        identity=1.0,
        compute=lambda batch: batch.background["ssim"],
    ),
    IOU,
    EVERYWHERE,
    BLOB,
    PerImage(
        name="attention_auc",
        label="Attention, AUC",
        hint="area under the ROC curve of the soft mask; higher is better",
        better="higher",
        places=DOMAINS,
        on="truth",
        attention=True,
        identity=0.5,
        compute=lambda batch: batch.auc,
    ),
    PerImage(
        name="attention_auc_blob",
        label="AUC of a fixed blob",
        hint="of a mask that fades from the centre of every image",
        better=None,
        places=DOMAINS,
        on="truth",
        attention=True,
        compute=lambda batch: batch.centre_auc,
    ),
    PerImage(
        name="attention_precision",
        label="Attention, precision",
        hint="share of the attended pixels that lie on the object",
        better="higher",
        places=DOMAINS,
        scale=100,
        digits=0,
        unit=" %",
        on="truth",
        attention=True,
        compute=lambda batch: batch.agreement["precision"],
    ),
    PerImage(
        name="attention_recall",
        label="Attention, recall",
        hint="share of the object that is attended",
        better="higher",
        places=DOMAINS,
        scale=100,
        digits=0,
        unit=" %",
        on="truth",
        attention=True,
        identity=0.0,
        compute=lambda batch: batch.agreement["recall"],
    ),
    PerImage(
        name="attention_inside",
        label="Attention inside the masks",
        hint="mean of the soft mask; higher is better",
        better="higher",
        places=DOMAINS,
        on="truth",
        attention=True,
        identity=0.0,
        compute=lambda batch: batch.inside_outside["inside"],
    ),
    PerImage(
        name="attention_outside",
        label="Attention outside the masks",
        hint="mean of the soft mask; lower is better",
        better="lower",
        places=DOMAINS,
        on="truth",
        attention=True,
        identity=0.0,
        compute=lambda batch: batch.inside_outside["outside"],
    ),
    COVERAGE,
    PerImage(
        name="attention_above_tau",
        label="Attention, share above τ",
        hint="the pixels that the discriminator sees in the second stage",
        better=None,
        places=DOMAINS,
        scale=100,
        digits=0,
        unit=" %",
        on="test",
        attention=True,
        compute=lambda batch: batch.health["above_tau"],
    ),
    PerImage(
        name="attention_bimodality",
        label="Attention, decidedness",
        hint="share of pixels below 0.1 or above 0.9",
        better=None,
        places=DOMAINS,
        scale=100,
        digits=0,
        unit=" %",
        on="test",
        attention=True,
        compute=lambda batch: batch.health["bimodality"],
    ),
    PerImage(
        name="attention_spread",
        label="Attention, spread inside an image",
        hint="standard deviation of the mask; 0: the same value everywhere",
        better=None,
        places=DOMAINS,
        on="test",
        attention=True,
        compute=lambda batch: batch.health["spread"],
    ),
    PerImage(
        name="attention_opacity",
        label="Attention, strength above τ",
        hint="mean of the mask there; low: translations are half-transparent",
        better=None,
        places=DOMAINS,
        on="test",
        attention=True,
        compute=lambda batch: batch.health["opacity"],
    ),
    PerImage(
        name="cycle_l1",
        label="Cycle error, L1",
        hint="after translating there and back; lower is better",
        better="lower",
        places=DOMAINS,
        digits=4,
        on="test",
        identity=0.0,
        compute=lambda batch: batch.cycle_l1,
    ),
)


def distances() -> list[Distance]:
    return [metric for metric in METRICS if isinstance(metric, Distance)]


def per_image() -> list[PerImage]:
    return [metric for metric in METRICS if isinstance(metric, PerImage)]


def find(name: str) -> Distance | PerImage | None:
    """The metric behind a name, with or without a place; None for any other name."""
    return next((metric for metric in METRICS if name in metric.keys), None)


def value_of(metrics: Mapping[str, float | None], name: str) -> float | None:
    """A metric of an evaluation by name, or the mean over its directions or domains; None unless all are known."""
    if name in metrics:
        return metrics[name]
    metric = find(name)
    parts = [metrics.get(f"{name}_{place}") for place in metric.places] if metric else []
    known = [value for value in parts if value is not None]
    return sum(known) / len(known) if known and len(known) == len(parts) else None


def get(name: str) -> Distance | PerImage:
    """The metric behind a name that must be in the catalogue."""
    metric = find(name)
    assert metric is not None, f"pipeline.metrics.catalog has no metric '{name}'"
    return metric


def digest() -> str:
    """Hash of what an evaluation measures: part of the keys of cached figures and of evaluations."""
    measured = [
        [m.name, m.places, m.better]
        + ([m.on, m.attention, m.identity] if isinstance(m, PerImage) else ["distance"])
        for m in METRICS
    ]
    return hashlib.sha256(json.dumps(measured).encode()).hexdigest()[:16]


def check_deciding(setting: str, name: str) -> None:
    """Check that a metric can decide which of two models is better.

    Raises:
        BadInput: no such metric, or neither end of it is better.
    """
    metric = find(name)
    if metric is None or metric.better is None:
        raise BadInput(
            f"{setting} '{name}' is not a metric or has no better end; use kid_target, kid_mean, fid, attention_iou_a "
            "or another metric of the evaluation"
        )


def lower_is_better(name: str) -> bool | None:
    """True for distances and errors, False for agreement, None where neither end is better."""
    metric = find(name)
    return None if metric is None or metric.better is None else metric.better == "lower"
