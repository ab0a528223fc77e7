"""The gate: decides, with reasons, whether a model becomes challenger and whether a challenger becomes champion.

A model becomes challenger if it passes its evaluation: all metrics are finite, no mask has collapsed, it beats the
identity baseline and, where there are true masks, its attention beats a fixed blob in the middle. It becomes champion
if there is none, or if it beats the current one in the policy's metric, measured on the same images, by more than the
margin and beyond noise, and no other metric regresses by more than the policy (``register.gate``) allows.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from pipeline.records import Evaluation, GateDecision, Rival


def check(policy: GateConfig) -> None:
    """Check that the policy names only existing metrics.

    Raises:
        BadInput: it names a metric that no evaluation measures.
    """
    check_deciding("register.gate.metric", policy.metric)
    for stem in policy.maximum_regression:
        check_deciding("register.gate.maximum_regression", stem)


def decide(policy: GateConfig, evaluation: Evaluation, champion: Mapping[str, Any] | None) -> GateDecision:
    """Judge an evaluation.

    Args:
        champion: the current champion (``name``, ``version``, ``weights_sha256``), or None.
    """
    objections = forbidden(policy, evaluation)
    if objections:
        return _decision(False, False, *objections)
    if champion is None:
        return _decision(True, True, "there was no champion, and the model passed its evaluation")
    weights = evaluation.model.weights_sha256
    if weights is not None and weights == champion.get("weights_sha256"):
        reason = f"it has the weights of the champion, version {champion['version']}: nothing to promote"
        return _decision(True, False, reason)
    measured = evaluation.champion
    if measured is None or measured.version != int(champion["version"]):
        return _decision(
            True,
            False,
            f"it was not compared with the current champion, version {champion['version']}, on the same "
            "images; run the same command again to compare them, or promote it manually",
        )
    objections = regressions(policy, evaluation.metrics, measured.metrics)
    beats, sentence = _beats(policy, evaluation, measured)
    return _decision(True, beats and not objections, sentence, *objections)


def _decision(passed: bool, promoted: bool, *reasons: str) -> GateDecision:
    return GateDecision(passed=passed, promoted=promoted, reasons=list(reasons))


def forbidden(policy: GateConfig, evaluation: Evaluation) -> list[str]:
    """Reasons, as sentences, why the evaluation is not passed; empty if it is."""
    metrics, baseline = evaluation.metrics, evaluation.baseline
    reasons = []
    broken = sorted(
        name
        for name, value in metrics.items()
        if value is None and not name.startswith(NOTHING) and not _undefined(name, metrics)
    )
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        reasons.append(f"metrics are not finite: {', '.join(broken[:3])}{more}")
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
    """Whether a metric can be undefined for a sound model, because its denominator is 0.

    This holds for the precision of attention that is nowhere above the threshold (recall is 0), and for the background
    metrics if there are no true masks and attention covers the whole image. Images that are not finite make all other
    metrics undefined too, so nothing is missed.
    """
    kind, separator, domain = name.partition("precision_")
    nowhere = bool(separator) and metrics.get(f"{kind}recall_{domain}") == 0.0
    return nowhere or name.startswith("background_")


def regressions(
    policy: GateConfig, metrics: Mapping[str, float | None], champion: Mapping[str, float | None]
) -> list[str]:
    """Metrics that are worse than the champion's by more than ``maximum_regression`` allows, as sentences."""
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
    """Whether ``name`` is ``stem`` for one domain or direction: ``attention_iou_a`` is a part of
    ``attention_iou``, ``attention_iou_everywhere_a`` is not."""
    return name.startswith(f"{stem}_") and name.removeprefix(f"{stem}_") in (*DIRECTIONS, *DOMAINS)


def _beats(policy: GateConfig, evaluation: Evaluation, champion: Rival) -> tuple[bool, str]:
    name = policy.metric
    mine, theirs = value_of(evaluation.metrics, name), value_of(champion.metrics, name)
    if mine is None or theirs is None:
        return False, f"the gate's metric {name} was not measured; correct register.gate.metric"
    gain = theirs - mine if lower_is_better(name) is not False else mine - theirs
    figures = f"{name} {mine:.4f} against {theirs:.4f} of the champion, version {champion.version}"
    if gain <= policy.margin:
        required = f"better by more than {policy.margin:g}" if policy.margin else "better"
        return False, f"{figures}, is not {required}"
    verdict = _verdict(evaluation.intervals, name)
    if policy.beyond_noise and verdict != "better":
        if verdict is None:
            return False, (
                f"{figures}, has no interval to distinguish it from noise; set evaluate.bootstrap, or "
                "register.gate.beyond_noise=false"
            )
        return False, f"{figures}, is a difference within noise"
    return True, f"{figures}, is better" + (" by more than noise" if verdict == "better" else "")


def _verdict(intervals: Mapping[str, Any], name: str) -> str | None:
    """Verdict of the comparison with the champion; a mean without an interval is better if all its parts are."""
    names = [name] if name in intervals else [key for key in intervals if _is_part_of(key, name)]
    verdicts = [((intervals[key] or {}).get("champion") or {}).get("verdict") for key in names]
    if not verdicts or None in verdicts:
        return None
    return "better" if set(verdicts) == {"better"} else "noise"
