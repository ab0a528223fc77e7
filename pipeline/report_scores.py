"""Scores in words: each figure beside doing nothing and beside the champion, and the verdict in a sentence.

A difference counts only when the two intervals do not overlap; anything smaller is called noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DIRECTIONS = ("a2b", "b2a")


@dataclass(frozen=True)
class Spec:
    """How one family of metrics is shown. ``judged``: doing nothing is a fair opponent here."""

    prefix: str
    label: str
    hint: str
    lower_is_better: bool | None
    judged: bool = False
    scale: float = 1.0
    digits: int = 2
    percent: bool = False


KID_SCALE = 100.0
SPECS = (
    Spec("kid_target", "KID to the target × 100", "lower is closer to real images", True, True, KID_SCALE),
    Spec(
        "kid_source",
        "KID to the source × 100",
        "doing nothing wins here by construction",
        True,
        False,
        KID_SCALE,
    ),
    Spec("kid_mean", "KID, mean of both × 100", "the paper's way to count", True, True, KID_SCALE),
    Spec("fid", "FID to the target", "biased upwards with few images", True, True, 1.0, 1),
    Spec("attention_iou", "Attention, IoU with the masks", "higher is better", False, percent=True),
    Spec("attention_precision", "Attention, precision", "attended and on the object", False, percent=True),
    Spec("attention_recall", "Attention, recall", "of the object, attended", False, percent=True),
    Spec("attention_coverage", "Attention, coverage", "share of the image", None, percent=True),
    Spec("background_l1", "Background change, L1", "outside the mask; lower keeps more", True, digits=4),
    Spec("background_psnr", "Background, PSNR (dB)", "higher keeps more", False, digits=1),
    Spec("background_ssim", "Background, SSIM", "higher keeps more", False, digits=3),
    Spec("cycle", "Cycle error, L1", "after there and back", True, digits=4),
)


@dataclass(frozen=True)
class Estimate:
    """A figure as measured, with its interval when there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Shown:
    text: str
    interval: str = ""


@dataclass(frozen=True)
class Judgement:
    """``tone`` is good, bad or even; without ``text`` nothing is claimed."""

    text: str = ""
    tone: str = "even"


NOTHING_SAID = Judgement()


def judge(mine: Estimate | None, other: Estimate | None, lower_is_better: bool | None) -> Judgement:
    """Better, worse, or within noise: intervals that overlap do not tell two models apart."""
    if mine is None or other is None or lower_is_better is None:
        return NOTHING_SAID
    my_low, my_high = _bounds(mine)
    low, high = _bounds(other)
    if my_low <= high and low <= my_high:
        return Judgement("within noise", "even")
    better = (my_high < low) if lower_is_better else (my_low > high)
    return Judgement("better", "good") if better else Judgement("worse", "bad")


def _bounds(estimate: Estimate) -> tuple[float, float]:
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    return low, high


def estimate(
    metrics: Mapping[str, Any] | None, intervals: Mapping[str, Any] | None, key: str
) -> Estimate | None:
    """A metric by its contract name with its interval (``[low, high]`` or ``{"low", "high"}``), if finite."""
    value = _number((metrics or {}).get(key))
    if value is None:
        return None
    interval = (intervals or {}).get(key)
    if isinstance(interval, Mapping):
        interval = [interval.get("low"), interval.get("high")]
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        return Estimate(value)
    return Estimate(value, _number(interval[0]), _number(interval[1]))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def shown(value: Estimate | None, spec: Spec) -> Shown | None:
    if value is None:
        return None

    def text(number: float) -> str:
        return f"{number * 100:.0f} %" if spec.percent else f"{number * spec.scale:.{spec.digits}f}"

    if value.low is None or value.high is None:
        return Shown(text(value.value))
    return Shown(text(value.value), f"{text(value.low)} to {text(value.high)}")


@dataclass(frozen=True)
class Opponent:
    """Whom the model is compared with: flat metrics and their intervals, under the contract's names."""

    metrics: Mapping[str, Any]
    intervals: Mapping[str, Any]

    def estimate(self, key: str) -> Estimate | None:
        return estimate(self.metrics, self.intervals, key)


@dataclass(frozen=True)
class Scores:
    """An evaluation with its opponents, ready to be shown.

    ``names`` are of domain A and B; a missing champion is None.
    """

    model: Opponent
    nothing: Opponent
    champion: Opponent | None
    names: tuple[str, str]

    @property
    def present(self) -> bool:
        return bool(self.model.metrics)

    def label(self, side: str) -> str:
        """``a2b`` in words, or the domain's name for ``a`` and ``b``."""
        a, b = self.names
        return {"a2b": f"{a} → {b}", "b2a": f"{b} → {a}", "a": a, "b": b}[side]

    def groups(self) -> list[dict[str, Any]]:
        """The table: one group of rows per direction and per domain, empty ones left out."""
        groups = []
        for side in (*DIRECTIONS, "a", "b"):
            rows = [row for spec in SPECS if (row := self._row(spec, f"{spec.prefix}_{side}"))]
            title = self.label(side) if side in DIRECTIONS else f"Attention on {self.label(side)}"
            if rows:
                groups.append({"title": title, "rows": rows})
        return groups

    def _row(self, spec: Spec, key: str) -> dict[str, Any] | None:
        mine = self.model.estimate(key)
        if mine is None:
            return None
        nothing = self.nothing.estimate(key)
        champion = self.champion.estimate(key) if self.champion else None
        return {
            "label": spec.label,
            "hint": spec.hint,
            "model": shown(mine, spec),
            "nothing": shown(nothing, spec),
            "champion": shown(champion, spec),
            "against_nothing": judge(mine, nothing, spec.lower_is_better) if spec.judged else NOTHING_SAID,
            "against_champion": judge(mine, champion, spec.lower_is_better),
        }

    def against_nothing(self) -> dict[str, Judgement]:
        """By direction, on KID to the target: the one score where doing nothing has no head start."""
        judged = {}
        for direction in DIRECTIONS:
            key = f"kid_target_{direction}"
            verdict = judge(self.model.estimate(key), self.nothing.estimate(key), True)
            if verdict.text:
                judged[direction] = verdict
        return judged
