from __future__ import annotations

from pathlib import Path

from pipeline import records, storage
from pipeline.metrics import table
from pipeline.report import build
from tests.pipeline.fabricated_run import fabricate


def test_the_best_checkpoint_stands_beside_the_last(html: str, tmp_path: Path) -> None:
    assert "Scores while it trained" not in html
    config, run, data = fabricate(tmp_path)
    figures = {
        step: {
            "kid_target_a2b": kid,
            "kid_target_b2a": kid,
            "attention_iou_a": 0.4,
            "attention_iou_blob_a": 0.3,
        }
        for step, kid in ((200, 0.12), (400, 0.08), (600, 0.1))
    }
    for step, metrics in figures.items():
        records.score_file(step).write(
            storage.join(run, records.SCORES), records.Scores(step=step, metrics=metrics, seconds=20.0)
        )
    told = records.Validation(
        metric="kid_target",
        images={"train_a": 40, "train_b": 30},
        best_step=400,
        best=figures[400],
        last_step=600,
        last=figures[600],
        scored=3,
        seconds=60.0,
    )
    result = storage.read_json(storage.join(run, "result.json"))
    storage.write_json(storage.join(run, "result.json"), result | {"validation": told.plain()})
    text = Path(build.build(config, run, data)).read_text()
    assert "Held out of the training: 40 of " in text
    assert (
        "3 checkpoints were scored in 60 s. The model is the best checkpoint by kid_target, that of step 400"
        in text
    )
    assert "best, step 400" in text
    assert "last, step 600" in text
    assert '<td class="number">8.00</td><td class="number">10.00</td>' in text
    assert text.count('id="chart-validation-') == 2, "KID and IoU; nothing says how much background changed"
    # MLflow's curves and Prefect's table are of the same rows
    curve = {row["step"]: row["validation"] for row in records.metric_rows(run)[0] if "validation" in row}
    assert curve == figures
    assert "| **400** | 8.00 | 8.00 | 40 % |" in table.validation_markdown(curve, 400)
