"""Scores as they are shown: each figure beside doing nothing and beside the champion.

Whether a difference is real is not decided here: the evaluation tests every difference on common resamples
and says better, worse or noise (:mod:`pipeline.evaluate.compare`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.metrics.names import DIRECTIONS

KID_SCALE = 100.0
"""KID is stored raw; papers print it times 100."""


@dataclass(frozen=True)
class Spec:
    """How one family of metrics is shown. ``judged``: doing nothing is a fair opponent here."""

    prefix: str
    label: str
    hint: str
    judged: bool = False
    scale: float = 1.0
    digits: int = 2
    unit: str = ""


SPECS = (
    Spec("kid_target", "KID to the target × 100", "lower is closer to real images", True, KID_SCALE),
    Spec(
        "kid_source",
        "KID to the source × 100",
        "doing nothing has about 0: it is its own source",
        False,
        KID_SCALE,
    ),
    Spec(
        "kid_mean",
        "KID, target and source × 100",
        "their mean; doing nothing has a head start",
        True,
        KID_SCALE,
    ),
    Spec("fid", "FID to the target", "biased upwards with few images", True, digits=1),
    Spec("background_l1", "Background change, L1", "outside the mask; 0 keeps everything", digits=4),
    Spec("background_psnr", "Background, PSNR", "higher keeps more", digits=1, unit=" dB"),
    Spec("background_ssim", "Background, SSIM", "1 keeps everything", digits=3),
    Spec(
        "attention_iou", "Attention, IoU with the masks", "higher is better", scale=100, digits=0, unit=" %"
    ),
    Spec(
        "attention_iou_everywhere",
        "IoU of attending everywhere",
        "what a mask of ones would get",
        scale=100,
        digits=0,
        unit=" %",
    ),
    Spec(
        "attention_precision",
        "Attention, precision",
        "of what is attended, on the object",
        scale=100,
        digits=0,
        unit=" %",
    ),
    Spec("attention_recall", "Attention, recall", "of the object, attended", scale=100, digits=0, unit=" %"),
    Spec("attention_inside", "Attention inside the masks", "its mean, with no threshold; higher is better"),
    Spec("attention_outside", "Attention outside the masks", "lower is better"),
    Spec("attention_opacity", "Attention above τ", "its mean there; low is half-transparent"),
    Spec("attention_coverage", "Attention, coverage", "share of the image", scale=100, digits=0, unit=" %"),
    Spec("cycle_l1", "Cycle error, L1", "after there and back; lower is better", digits=4),
)


@dataclass(frozen=True)
class Estimate:
    """A figure as measured, with its 95 % interval when there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def reach(self) -> tuple[float, float]:
        """How far the interval reaches below and above the value."""
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        return self.value - low, high - self.value

    def scaled(self, factor: float) -> Estimate:
        return Estimate(*(None if v is None else v * factor for v in (self.value, self.low, self.high)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Shown:
    """A figure as text, with its interval below it."""

    text: str
    interval: str = ""


@dataclass(frozen=True)
class Judgement:
    """``tone`` is good, bad or even; without ``text`` nothing is claimed."""

    text: str = ""
    tone: str = "even"
    interval: str = ""


NOTHING_SAID = Judgement()
_VERDICTS = {"better": ("better", "good"), "worse": ("worse", "bad"), "noise": ("noise", "even")}


@dataclass(frozen=True)
class Opponent:
    """Figures under the contract's names, with their intervals (``value``, ``low``, ``high``) where tested."""

    metrics: Mapping[str, Any]
    intervals: Mapping[str, Any]

    def estimate(self, key: str) -> Estimate | None:
        """A figure, if it is finite."""
        value = number(self.metrics.get(key))
        interval = self.intervals.get(key) or {}
        if value is None:
            return None
        return Estimate(value, number(interval.get("low")), number(interval.get("high")))


@dataclass(frozen=True)
class Scores:
    """An evaluation, ready to be shown.

    Attributes:
        metrics: of the model, under the contract's names; None where a value was not finite.
        intervals: by name: ``value``, ``low``, ``high`` and the tested differences ``do_nothing``, ``champion``.
        nothing: a translator that changes nothing, in the same form.
        champion: the present champion; empty when there is none.
        names: of domain A and B.
    """

    metrics: Mapping[str, Any]
    intervals: Mapping[str, Any]
    nothing: Opponent
    champion: Opponent
    names: tuple[str, str]

    @property
    def present(self) -> bool:
        return bool(self.metrics)

    def label(self, side: str) -> str:
        """``a2b`` in words, or the domain's name for ``a`` and ``b``."""
        a, b = self.names
        return {"a2b": f"{a} → {b}", "b2a": f"{b} → {a}", "a": a, "b": b}[side]

    def estimate(self, key: str) -> Estimate | None:
        """The model's figure by its contract name, if it is finite."""
        return Opponent(self.metrics, self.intervals).estimate(key)

    def judged(self, key: str, opponent: str, spec: Spec | None = None) -> Judgement:
        """What the evaluation says of the difference to ``do_nothing`` or ``champion``."""
        tested = (self.intervals.get(key) or {}).get(opponent) or {}
        text, tone = _VERDICTS.get(str(tested.get("verdict")), ("", "even"))
        low, high = number(tested.get("low")), number(tested.get("high"))
        if not text or spec is None or low is None or high is None:
            return Judgement(text, tone)
        return Judgement(text, tone, f"{_text(low, spec, '+')} to {_text(high, spec, '+')}")

    def against_nothing(self) -> dict[str, Judgement]:
        """By direction, on KID to the target: the one score where doing nothing has no head start."""
        found = {d: self.judged(f"kid_target_{d}", "do_nothing") for d in DIRECTIONS}
        return {direction: verdict for direction, verdict in found.items() if verdict.text}

    def groups(self) -> list[dict[str, Any]]:
        """The table: a group of rows for both directions together, each of them, and each domain."""
        titles = {"": "Mean of both directions"} | {f"_{d}": self.label(d) for d in DIRECTIONS}
        titles |= {f"_{domain}": f"On images of {self.label(domain)}" for domain in "ab"}
        groups = []
        for side, title in titles.items():
            rows = [row for spec in SPECS if (row := self._row(spec, spec.prefix + side))]
            if rows:
                groups.append({"title": title, "rows": rows})
        return groups

    def _row(self, spec: Spec, key: str) -> dict[str, Any] | None:
        if key not in self.metrics:
            return None
        mine = self.estimate(key)
        return {
            "label": spec.label,
            "hint": spec.hint,
            "model": _shown(mine, spec) if mine else Shown("undefined"),
            "nothing": _shown(self.nothing.estimate(key), spec),
            "champion": _shown(self.champion.estimate(key), spec),
            "against_nothing": self.judged(key, "do_nothing", spec) if spec.judged else NOTHING_SAID,
            "against_champion": self.judged(key, "champion", spec),
        }


def number(value: Any) -> float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _shown(value: Estimate | None, spec: Spec) -> Shown | None:
    if value is None:
        return None
    text = _text(value.value, spec) + spec.unit
    if value.low is None or value.high is None:
        return Shown(text)
    return Shown(text, f"{_text(value.low, spec)} to {_text(value.high, spec)}")


def _text(value: float, spec: Spec, sign: str = "") -> str:
    return f"{value * spec.scale:{sign}.{spec.digits}f}".replace("-", "−")
