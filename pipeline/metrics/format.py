"""Formatting of scores: each metric with the identity baseline and the champion.

Significance is not decided here: the evaluation tests every difference on common resamples, with the verdict better,
worse or noise (:mod:`pipeline.evaluate.compare`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.metrics import catalog
from pipeline.metrics.catalog import DIRECTIONS, KID_TARGET, Metric


@dataclass(frozen=True)
class Estimate:
    """A measured value, with its 95 % interval if there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def reach(self) -> tuple[float, float]:
        """Distances from the value to the lower and the upper end of the interval."""
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        return self.value - low, high - self.value

    def interval(self, metric: Metric) -> str:
        """The interval as text; empty if there is none."""
        if self.low is None or self.high is None:
            return ""
        return f"{metric.number(self.low)} to {metric.number(self.high)}"

    def scaled(self, factor: float) -> Estimate:
        return Estimate(*(None if v is None else v * factor for v in (self.value, self.low, self.high)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Shown:
    """A value and its interval as text."""

    text: str
    interval: str = ""


@dataclass(frozen=True)
class Judgement:
    """Verdict on a difference; ``tone`` is good, bad or even. Empty ``text``: not tested."""

    text: str = ""
    tone: str = "even"
    interval: str = ""


NOTHING_SAID = Judgement()
_VERDICTS = {"better": ("better", "good"), "worse": ("worse", "bad"), "noise": ("noise", "even")}


@dataclass(frozen=True)
class Opponent:
    """Metrics by contract name, with their intervals (``value``, ``low``, ``high``) if tested."""

    metrics: Mapping[str, Any]
    intervals: Mapping[str, Any]

    def estimate(self, key: str) -> Estimate | None:
        """Value of a metric with its interval; None if missing or not finite."""
        value = number(self.metrics.get(key))
        interval = self.intervals.get(key) or {}
        if value is None:
            return None
        return Estimate(value, number(interval.get("low")), number(interval.get("high")))


@dataclass(frozen=True)
class Scores:
    """An evaluation, prepared for display.

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
        """The model's value of a metric by contract name; None if missing or not finite."""
        return Opponent(self.metrics, self.intervals).estimate(key)

    def judged(self, key: str, opponent: str, metric: Metric | None = None) -> Judgement:
        """The evaluation's verdict on the difference from ``do_nothing`` or ``champion``."""
        tested = (self.intervals.get(key) or {}).get(opponent) or {}
        text, tone = _VERDICTS.get(str(tested.get("verdict")), ("", "even"))
        low, high = number(tested.get("low")), number(tested.get("high"))
        if not text or metric is None or low is None or high is None:
            return Judgement(text, tone)
        return Judgement(text, tone, f"{metric.number(low, '+')} to {metric.number(high, '+')}")

    def against_nothing(self) -> dict[str, Judgement]:
        """Verdicts by direction on KID to the target, the one metric that does not favour doing nothing."""
        found = {d: self.judged(KID_TARGET.key(d), "do_nothing") for d in DIRECTIONS}
        return {direction: verdict for direction, verdict in found.items() if verdict.text}

    def groups(self) -> list[dict[str, Any]]:
        """The score table: groups of rows for the mean of both directions, each direction, and each domain."""
        titles = {"": "Mean of both directions"} | {f"_{d}": self.label(d) for d in DIRECTIONS}
        titles |= {f"_{domain}": f"On images of {self.label(domain)}" for domain in "ab"}
        groups = []
        for side, title in titles.items():
            rows = [row for metric in catalog.METRICS if (row := self._row(metric, metric.name + side))]
            if rows:
                groups.append({"title": title, "rows": rows})
        return groups

    def _row(self, metric: Metric, key: str) -> dict[str, Any] | None:
        if key not in self.metrics:
            return None
        mine = self.estimate(key)
        return {
            "label": metric.label,
            "hint": metric.hint,
            "model": _shown(mine, metric) if mine else Shown("undefined"),
            "nothing": _shown(self.nothing.estimate(key), metric),
            "champion": _shown(self.champion.estimate(key), metric),
            "against_nothing": self.judged(key, "do_nothing", metric) if metric.judged else NOTHING_SAID,
            "against_champion": self.judged(key, "champion", metric),
        }


def number(value: Any) -> float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def network(inception: Mapping[str, Any]) -> str:
    """Name of the feature network of FID and KID; scores with different networks are not comparable."""
    return f"{inception['name']} (SHA-256 {inception['sha256'][:12]})"


def _shown(found: Estimate | None, metric: Metric) -> Shown | None:
    return None if found is None else Shown(metric.text(found.value), found.interval(metric))
