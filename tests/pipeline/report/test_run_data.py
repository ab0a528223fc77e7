from __future__ import annotations

from pathlib import Path

import pytest

from agit_core.errors import BadInput
from pipeline.config import load
from pipeline.report import build
from pipeline.report.run_data import read_run
from tests.pipeline.fabricated_run import TOTAL, fabricate
from tests.pipeline.report.report_page import text_of


@pytest.mark.parametrize(
    "lacking",
    [
        {
            "evaluation": "The model has not been evaluated, so there are no scores",
            "samples": "There are no sample pictures",
            "spec": "How this came to be",
        },
        {
            "registration": "The model has not been registered",
            "metrics": "There are no curves",
            "manifest": "The data card cannot be shown",
            "result": "The training has not finished",
            "events": "How this came to be",
        },
    ],
)
def test_missing_parts_are_said_and_the_rest_is_shown(tmp_path: Path, lacking: dict[str, str]) -> None:
    config, run, data = fabricate(tmp_path, **dict.fromkeys(lacking, True))
    text = text_of(Path(build.build(config, run, data)).read_text())
    assert [sentence for sentence in lacking.values() if sentence not in text] == []
    everything = {
        "evaluation": "KID to the target × 100",
        "samples": "The same images at every saved checkpoint",
        "registration": "The decision",
        "metrics": "Generator loss",
        "manifest": "1,000 images of plain and striped",
    }
    assert [part for part, words in everything.items() if (words in text) == (part in lacking)] == []


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    parts = ("evaluation", "registration", "samples", "metrics", "manifest", "result", "events")
    config, run, data = fabricate(tmp_path, **dict.fromkeys(parts, True))
    html = Path(build.build(config, run, data)).read_text()
    assert "The training has not begun." in html
    assert 'id="plotly"' not in html  # nothing to draw, nothing to carry


def test_damaged_files_are_said_and_skipped(tmp_path: Path) -> None:
    config, run, data = fabricate(tmp_path)
    (Path(run) / "evaluation.json").write_text('{"metrics": ')
    (Path(run) / "samples" / "step-00000600" / "a2b-0.png").write_bytes(b"not a picture")
    with (Path(run) / "metrics" / "00000600.jsonl").open("a") as rows:
        rows.write('{"step": 601, "los')
    html = Path(build.build(config, run, data)).read_text()
    assert "evaluation.json: it is not valid JSON" in html
    assert "1 rows of the metrics could not be read" in html
    assert "What it does" in html


def test_no_run_at_all_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no run at"):
        build.build(load("demo"), str(tmp_path / "runs" / "none"), str(tmp_path))


def test_rows_of_a_resumed_run_count_once(tmp_path: Path) -> None:
    _, run, data = fabricate(tmp_path)
    again = Path(run) / "metrics" / "00000100.jsonl"
    again.write_text(again.read_text() * 2)
    steps = [row["step"] for row in read_run(run, data).metrics]
    assert steps == list(range(10, TOTAL + 1, 10))
