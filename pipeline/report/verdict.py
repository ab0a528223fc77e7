"""Headline of the report: whether the model beats doing nothing and whether it was promoted, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.metrics.catalog import (
    BLOB,
    COVERAGE,
    DIRECTIONS,
    DOMAINS,
    EVERYWHERE,
    IOU,
    KID_MEAN,
    KID_TARGET,
    Metric,
)
from pipeline.metrics.format import Judgement, Scores
from pipeline.records import Registration
from pipeline.report.run_data import Run


def headline(run: Run, scores: Scores) -> dict[str, Any]:
    """``sentence``, ``because`` (may be empty) and ``chips`` for the top of the page."""
    judged = scores.against_nothing()
    registration = run.registration
    if not scores.present:
        sentence = _unscored(run)
    elif not judged:
        sentence = "Scored, but not tested against doing nothing" + _promotion_clause(registration, good=None)
    else:
        good = all(verdict.tone == "good" for verdict in judged.values())
        sentence = _against_nothing(judged, scores) + _promotion_clause(registration, good)
    chips = [_direction_chip(scores.label(d), judged[d]) for d in DIRECTIONS if d in judged]
    if registration is not None:
        chips.append(_registry_chip(registration))
    return {
        "sentence": sentence + ".",
        "because": " ".join(
            [*_yardstick(scores, judged), *([] if registration is None else reasons(registration))]
        ),
        "chips": chips,
    }


def _yardstick(scores: Scores, judged: Mapping[str, Judgement]) -> list[str]:
    """The metric that the headline is based on, and the other metric's verdict if it disagrees."""
    if not judged:
        return []
    mean = scores.judged(KID_MEAN.name, "do_nothing")
    if not mean.text or mean.tone == "good":
        return ["Judged by KID to the target."]
    how = "worse than doing nothing" if mean.tone == "bad" else "no different from doing nothing"
    return [
        "Judged by KID to the target. "
        f"On the mean of target and source it is {how}, which has a head start there: it returns the source itself."
    ]


def _unscored(run: Run) -> str:
    if run.result:
        return f"Trained for {run.result.steps:,} steps, but not scored yet"
    progress = run.progress
    if progress is None or progress.step is None:
        return "The training has not begun"
    state = "failed" if progress.state == "failed" else "is not finished"
    total = f" of {progress.total_steps:,}" if progress.total_steps else ""
    return f"The training {state}: step {progress.step:,}{total}"


def _against_nothing(judged: Mapping[str, Judgement], scores: Scores) -> str:
    tones = {direction: verdict.tone for direction, verdict in judged.items()}
    good = [scores.label(d) for d, tone in tones.items() if tone == "good"]
    if len(good) == len(tones):
        return "Better than doing nothing" + (" in both directions" if len(good) == 2 else f", {good[0]}")
    if good:
        other = next(d for d, tone in tones.items() if tone != "good")
        how = "worse than it" if tones[other] == "bad" else "no different from it"
        return f"Better than doing nothing for {good[0]}, {how} for {scores.label(other)}"
    if set(tones.values()) == {"even"}:
        return "Not distinguishable from doing nothing"
    if set(tones.values()) == {"bad"}:
        return "Worse than doing nothing"
    return "Not better than doing nothing"


def _promotion_clause(registration: Registration | None, good: bool | None) -> str:
    if registration is None:
        return ", and not registered" if good is not None else ""
    if registration.decision.passed is False:
        return ", but refused by the gate" if good else ", and refused by the gate"
    if promoted(registration):
        return ", and promoted to champion" if good in (True, None) else ", yet promoted to champion"
    return ", but not promoted" if good else ", and not promoted"


def promoted(registration: Registration) -> bool:
    """Whether this version is the champion, by the decision or else by its aliases."""
    known = registration.decision.promoted
    return "champion" in registration.aliases if known is None else known


def reasons(registration: Registration) -> list[str]:
    """The gate's reasons as sentences."""
    return [_sentence(reason) for reason in registration.decision.reasons if reason.strip()]


def _sentence(text: str) -> str:
    text = text.strip()
    first = text.split(" ", 1)[0]
    # do not capitalise the name of a metric
    text = text if "_" in first else text[:1].upper() + text[1:]
    return text + ("" if text.endswith((".", "!", "?")) else ".")


def _direction_chip(label: str, verdict: Judgement) -> dict[str, str]:
    words = {"good": "better than doing nothing", "bad": "worse than doing nothing", "even": "within noise"}
    return {"text": f"{label}: {words[verdict.tone]}", "tone": verdict.tone}


def _registry_chip(registration: Registration) -> dict[str, str]:
    version = f"{registration.name} version {registration.version}"
    if promoted(registration):
        return {"text": f"{version}: champion", "tone": "good"}
    if registration.decision.passed is False:
        return {"text": f"{version}: did not pass", "tone": "bad"}
    alias = ", ".join(registration.aliases) or "no alias"
    return {"text": f"{version}: {alias}", "tone": "even"}


def tiles(run: Run, scores: Scores) -> list[dict[str, str]]:
    """Key figures at the top of the page: KID per direction with the identity baseline, attention, steps."""
    shown = []
    judged = scores.against_nothing()
    for direction in DIRECTIONS:
        mine = scores.estimate(KID_TARGET.key(direction))
        nothing = scores.nothing.estimate(KID_TARGET.key(direction))
        if mine is None:
            continue
        beside = f"doing nothing: {KID_TARGET.text(nothing.value) if nothing else 'not measured'}"
        tone = judged[direction].tone if direction in judged else "even"
        label = f"{KID_TARGET.label}, {scores.label(direction)}"
        shown.append(_tile(label, KID_TARGET.text(mine.value), beside, tone))
    shown += _attention_tile(scores)
    steps = run.result.steps if run.result else run.progress.step if run.progress else None
    if steps:
        trained = run.result or run.progress
        speed = trained.images_per_s if trained else None
        note = "" if speed is None else f"{speed:.1f} images per second"
        shown.append(_tile("Training steps", f"{steps:,}", note))
    return shown


def _attention_tile(scores: Scores) -> list[dict[str, str]]:
    def both(metric: Metric) -> str | None:
        found = [scores.estimate(metric.key(domain)) for domain in DOMAINS]
        return " · ".join(metric.text(e.value) for e in found if e) if all(found) else None

    yardsticks = [
        f"{name}: {text}" for name, text in (("a blob", both(BLOB)), ("ones", both(EVERYWHERE))) if text
    ]
    for metric, note in ((IOU, "; ".join(yardsticks)), (COVERAGE, "")):
        if value := both(metric):
            label = f"{metric.label}, {scores.names[0]} · {scores.names[1]}"
            return [_tile(label, value, note or metric.hint)]
    return []


def _tile(label: str, value: str, note: str, tone: str = "even") -> dict[str, str]:
    return {"label": label, "value": value, "note": note, "tone": tone}
