from __future__ import annotations

from typing import Any

import pytest

from pipeline.metrics import format as report_scores
from pipeline.records import Progress, Registration
from pipeline.report import verdict as report_verdict
from pipeline.report.run_data import Run


def test_attention_stands_beside_a_blob(html: str) -> None:
    assert "a blob: 31 % · 66 %" in html
    assert html.count("no better than a fixed blob in the middle of every image: IoU 64 % against 66 %") == 1


def scores(verdicts: dict[str, str]) -> report_scores.Scores:
    metrics = {f"kid_target_{d}": 0.1 for d in verdicts}
    intervals = {f"kid_target_{d}": {"do_nothing": {"verdict": v}} for d, v in verdicts.items() if v}
    empty = report_scores.Opponent({}, {})
    return report_scores.Scores(metrics, intervals, empty, empty, ("horse", "zebra"))


@pytest.mark.parametrize(
    ("verdicts", "registration", "sentence"),
    [
        (
            {"a2b": "better", "b2a": "better"},
            {"decision": {"passed": True, "promoted": False}},
            "Better than doing nothing in both directions, but not promoted.",
        ),
        (
            {"a2b": "better", "b2a": "noise"},
            None,
            "Better than doing nothing for horse → zebra, no different from it for zebra → horse, "
            "and not registered.",
        ),
        (
            {"a2b": "worse", "b2a": "worse"},
            {"decision": {"passed": False, "promoted": False}},
            "Worse than doing nothing, and refused by the gate.",
        ),
        (
            {"a2b": "noise", "b2a": "noise"},
            {"aliases": ["champion"]},
            "Not distinguishable from doing nothing, yet promoted to champion.",
        ),
        ({"a2b": "worse", "b2a": "noise"}, None, "Not better than doing nothing, and not registered."),
        ({"a2b": "", "b2a": ""}, None, "Scored, but not tested against doing nothing."),
        ({}, None, "The training has not begun."),
    ],
)
def test_verdicts(verdicts: dict[str, str], registration: dict[str, Any] | None, sentence: str) -> None:
    known = registration and Registration(name="demo", version=1, source="m", **registration)
    run = Run("runs/x", None, registration=known or None)
    assert report_verdict.headline(run, scores(verdicts))["sentence"] == sentence


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        ("better", "Judged by KID to the target."),
        ("worse", "On the mean of target and source it is worse than doing nothing"),
        ("noise", "On the mean of target and source it is no different from doing nothing"),
    ],
)
def test_a_yardstick_that_disagrees_is_named_at_the_top(verdict: str, message: str) -> None:
    judged = scores({"a2b": "better", "b2a": "better"})
    judged.intervals["kid_mean"] = {"do_nothing": {"verdict": verdict}}  # type: ignore[index]
    because = report_verdict.headline(Run("runs/x", None), judged)["because"]
    assert message in because
    assert ("mean" in because) == (verdict != "better")


def test_a_failed_training_is_named() -> None:
    progress = Progress(state="failed", time=0.0, step=40, total_steps=600)
    message = report_verdict.headline(Run("runs/x", None, progress=progress), scores({}))["sentence"]
    assert message == "The training failed: step 40 of 600."
