"""The gate: may a model be challenger, and does a challenger become champion? Every answer has its reasons.

A model that passes its evaluation is challenger: all its figures are finite, no mask has collapsed, it beats doing
nothing and its attention, where there are true masks, a fixed blob in the middle. It becomes champion when there is
none, or when it beats the present one in the policy's metric, measured on the same images, by more than the margin and
by more than noise, and is nowhere worse than the policy allows. The policy is ``register.gate``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config import GateConfig
from pipeline.metrics.catalog import (
    BLOB,
    COVERAGE,
    DIRECTIONS,
    DOMAINS,
    IOU,
    KID_TARGET,
    NOTHING,
    check_deciding,
    lower_is_better,
    value_of,
)


@dataclass(frozen=True)
class Decision:
    """What the gate decided.

    Attributes:
        passed: the evaluation was passed; the model may be challenger.
        promoted: it becomes champion.
        reasons: sentences, what spoke against it or for it.
    """

    passed: bool
    promoted: bool
    reasons: list[str]

    def plain(self) -> dict[str, Any]:
        return {"passed": self.passed, "promoted": self.promoted, "reasons": self.reasons}


def check(policy: GateConfig) -> None:
    """Whether the policy can ever be met, as far as its names tell.

    Raises:
        BadInput: it asks for a metric that no evaluation measures.
    """
    check_deciding("register.gate.metric", policy.metric)
    for stem in policy.maximum_regression:
        check_deciding("register.gate.maximum_regression", stem)


def decide(policy: GateConfig, evaluation: Mapping[str, Any], champion: Mapping[str, Any] | None) -> Decision:
    """Judges an evaluation.

    Args:
        evaluation: content of ``evaluation.json``.
        champion: the present champion (``name``, ``version``, ``weights_sha256``), None when there is none.
    """
    against = forbidden(policy, evaluation)
    if against:
        return Decision(False, False, against)
    if champion is None:
        return Decision(True, True, ["there was no champion and the evaluation is passed"])
    weights = (evaluation.get("model") or {}).get("weights_sha256")
    if weights is not None and weights == champion.get("weights_sha256"):
        return Decision(
            True,
            False,
            [f"it has the weights of the champion, version {champion['version']}: nothing to promote"],
        )
    measured = evaluation.get("champion")
    if not measured or int(measured["version"]) != int(champion["version"]):
        return Decision(
            True,
            False,
            [
                f"it was not compared with the present champion, version {champion['version']}, on the same "
                "images; the same command again compares them, or promote it by hand"
            ],
        )
    against = regressions(policy, evaluation["metrics"], measured["metrics"])
    beats, sentence = _beats(policy, evaluation, measured)
    return Decision(True, beats and not against, [sentence, *against])


def forbidden(policy: GateConfig, evaluation: Mapping[str, Any]) -> list[str]:
    """What no champion and no challenger may show, in sentences; empty when the evaluation is passed."""
    metrics: Mapping[str, float | None] = evaluation["metrics"]
    baseline: Mapping[str, float | None] = evaluation.get("baseline") or {}
    reasons = []
    broken = sorted(
        name
        for name, value in metrics.items()
        if value is None and not name.startswith(NOTHING) and not _undefined(name, metrics)
    )
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        reasons.append(f"figures are not finite: {', '.join(broken[:3])}{more}")
    for domain in "ab":
        coverage = metrics.get(COVERAGE.key(domain))
        if coverage is None:
            continue
        if coverage > policy.maximum_coverage:
            reasons.append(
                f"the attention of domain {domain} has collapsed to all ones: coverage {coverage:.3f} is above "
                f"{policy.maximum_coverage}"
            )
        if coverage < policy.minimum_coverage:
            reasons.append(
                f"the attention of domain {domain} has collapsed to nothing: coverage {coverage:.4f} is below "
                f"{policy.minimum_coverage}"
            )
    for direction in DIRECTIONS if policy.better_than_nothing else ():
        name = KID_TARGET.key(direction)
        value, nothing = metrics.get(name), baseline.get(name)
        if value is not None and nothing is not None and value >= nothing:
            reasons.append(f"{name} {value:.4f} is no better than doing nothing ({nothing:.4f})")
    for domain in DOMAINS if policy.better_than_blob else ():
        iou, blob = metrics.get(IOU.key(domain)), metrics.get(BLOB.key(domain))
        if iou is not None and blob is not None and iou <= blob:
            reasons.append(
                f"{IOU.key(domain)} {iou:.3f} is no better than that of a fixed blob in the middle ({blob:.3f})"
            )
    return reasons


def _undefined(name: str, metrics: Mapping[str, float | None]) -> bool:
    """What has nothing to divide by, in a sound model: the precision of attention that takes no side anywhere (recall
    is 0), and the background where there are no true masks and the model paints over everything.

    Images that are not finite show in every other figure, too.
    """
    kind, separator, domain = name.partition("precision_")
    nowhere = bool(separator) and metrics.get(f"{kind}recall_{domain}") == 0.0
    return nowhere or name.startswith("background_")


def regressions(
    policy: GateConfig, metrics: Mapping[str, float | None], champion: Mapping[str, float | None]
) -> list[str]:
    """Metrics that are worse than the champion's by more than ``maximum_regression`` allows, in sentences."""
    reasons = []
    for stem, allowed in policy.maximum_regression.items():
        names = [name for name in metrics if name == stem or _is_part_of(name, stem)]
        if not names:
            reasons.append(f"{stem} may not fall behind the champion's, but was not measured")
        for name in names:
            mine, theirs = metrics[name], champion.get(name)
            if mine is None or theirs is None:
                continue
            worse = mine - theirs if lower_is_better(name) is not False else theirs - mine
            if worse > allowed:
                reasons.append(
                    f"{name} {mine:.4f} is worse than the champion's {theirs:.4f} by more than {allowed:g}"
                )
    return reasons


def _is_part_of(name: str, stem: str) -> bool:
    """``attention_iou_a`` is the ``attention_iou`` of one domain; ``attention_iou_everywhere_a`` is not."""
    return name.startswith(f"{stem}_") and name.removeprefix(f"{stem}_") in (*DIRECTIONS, *DOMAINS)


def _beats(
    policy: GateConfig, evaluation: Mapping[str, Any], champion: Mapping[str, Any]
) -> tuple[bool, str]:
    name = policy.metric
    mine, theirs = value_of(evaluation["metrics"], name), value_of(champion["metrics"], name)
    if mine is None or theirs is None:
        return False, f"the gate's metric {name} was not measured; correct register.gate.metric"
    gain = theirs - mine if lower_is_better(name) is not False else mine - theirs
    figures = f"{name} {mine:.4f} against {theirs:.4f} of the champion, version {champion['version']}"
    if gain <= policy.margin:
        wanted = f"better by more than {policy.margin:g}" if policy.margin else "better"
        return False, f"{figures}, is not {wanted}"
    verdict = _verdict(evaluation.get("intervals") or {}, name)
    if policy.beyond_noise and verdict != "better":
        if verdict is None:
            return False, (
                f"{figures}, has no interval to tell it from noise; set evaluate.bootstrap, or "
                "register.gate.beyond_noise=false"
            )
        return False, f"{figures}, is a difference within noise"
    return True, f"{figures}, is better" + (" by more than noise" if verdict == "better" else "")


def _verdict(intervals: Mapping[str, Any], name: str) -> str | None:
    """Of the comparison with the champion; a mean without its own is better when each of its parts is."""
    names = [name] if name in intervals else [key for key in intervals if _is_part_of(key, name)]
    told = [((intervals[key] or {}).get("champion") or {}).get("verdict") for key in names]
    if not told or None in told:
        return None
    return "better" if set(told) == {"better"} else "noise"
