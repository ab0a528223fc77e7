from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import tasks
from pipeline.cli import scores
from pipeline.config import load
from pipeline.metrics import table
from pipeline.records import REGISTRATION, Data, Evaluation, Manifest, Registration, Result, Rival, Run
from pipeline.registry import models
from tests.pipeline.command import tiny_config


def evaluation() -> Evaluation:
    def against(verdict: str) -> dict[str, Any]:
        return {"difference": -0.1, "low": -0.2, "high": 0.0, "verdict": verdict}

    return Evaluation.model_validate(
        {
            "metrics": {
                "kid_target_a2b": 0.08,
                "attention_iou_a": 0.5,
                "attention_iou_b": None,
                "kid_target": 0.1,
            },
            "baseline": {"kid_target_a2b": 0.2, "attention_iou_a": 0.0},
            "champion": {"version": 3, "metrics": {"kid_target_a2b": 0.081, "attention_iou_a": 0.6}},
            "intervals": {
                "kid_target_a2b": {
                    "value": 0.08,
                    "low": 0.06,
                    "high": 0.1,
                    "do_nothing": against("better"),
                    "champion": against("noise"),
                },
                "attention_iou_a": {"value": 0.5, "low": 0.4, "high": 0.6, "champion": against("worse")},
            },
            "counts": {"test_a": 20, "test_b": 30},
            "inception": {"name": "inception-2015", "sha256": "7ff4a85c3a6378f0"},
            "protocol": {"warnings": ["only 20 images"]},
        }
    )


def _markdown(scored: Evaluation) -> str:
    return table.markdown("Scores", scored.metrics, scored.counts, scored.inception)


def test_every_figure_has_its_interval_and_its_rivals(capsys: pytest.CaptureFixture[str]) -> None:
    kid, iou_a, iou_b = scores.rows(evaluation())
    assert kid == [
        *("KID to the target × 100, a2b", "8.00", "6.00 to 10.00"),
        *("20.00 [green]better[/green]", "8.10 noise"),
    ]
    assert iou_a == [
        *("Attention, IoU with the masks, a", "50 %", "40 to 60"),
        *("0 %", "60 % [red]worse[/red]"),
    ]
    assert iou_b == ["Attention, IoU with the masks, b", "", "", "", ""]
    scores.show(evaluation())
    shown = capsys.readouterr().out
    assert "champion 3" in shown
    assert "20.00 better" in shown
    assert "test_a 20, test_b 30" in shown
    assert "features of inception-2015 (SHA-256 7ff4a85c3a63)" in shown
    assert "features of inception-2015" in _markdown(evaluation())
    assert "only 20 images" in shown
    assert {len(row) for row in scores.rows(evaluation().but(champion=None))} == {4}


def test_scores_are_made_again_for_another_champion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made against nobody or version 1, they say nothing about version 2; unless that is this model."""
    settings = load(str(tiny_config(tmp_path)), [f"storage={tmp_path}/agit"])
    run = Run("tiny-1", f"{tmp_path}/agit/runs/tiny-1", Result(checkpoint="x", steps=4))
    data = Data("nowhere", Manifest(fingerprint="f"), True)
    made: list[str] = []

    def stage(*_: Any) -> Evaluation:
        made.append("")
        champion = models.champion(settings)
        return Evaluation(metrics={}, champion=Rival(version=champion["version"]) if champion else None)

    monkeypatch.setattr("pipeline.evaluate.scoring.evaluate", stage)
    monkeypatch.setattr("pipeline.train.damage.damage", lambda folder: None)

    def evaluations_with(champion: int | None) -> int:
        monkeypatch.setattr(models, "champion", lambda _: champion and {"version": champion})
        tasks.evaluate(settings, data, run)
        return len(made)

    assert [evaluations_with(champion) for champion in (None, None, 1, 1, 2, 2)] == [1, 1, 2, 2, 3, 3]
    REGISTRATION.write(run.uri, Registration(name="tiny", version=4, source="x"))
    assert evaluations_with(4) == 3
