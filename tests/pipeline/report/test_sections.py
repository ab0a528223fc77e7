from __future__ import annotations

import json
from pathlib import Path

from pipeline.config import load
from pipeline.registry import audit
from pipeline.report import build
from tests.pipeline.fabricated_run import fabricate
from tests.pipeline.report.report_page import text_of


def test_attention_that_was_off_is_not_called_collapsed(tmp_path: Path) -> None:
    config, run, data = fabricate(tmp_path)
    collapsed = {"metrics": {"attention_coverage_a": 0.999, "attention_coverage_b": 0.3}}
    (Path(run) / "evaluation.json").write_text(json.dumps(collapsed))
    without = load("demo", ["method.networks.attention=false"])
    text = text_of(Path(build.build(without, run, data)).read_text())
    assert "This model has no attention" in text
    assert "has collapsed to" not in text
    text = text_of(Path(build.build(config, run, data)).read_text())
    assert "The attention on plain has collapsed to all ones" in text
    assert "The attention on striped" not in text


def test_attention_that_never_took_sides_is_said(tmp_path: Path) -> None:
    config, run, data = fabricate(tmp_path)
    flat = {"attention_coverage_a": 0.18, "attention_spread_a": 0.037}
    decided = {"attention_coverage_b": 0.18, "attention_spread_b": 0.31}
    (Path(run) / "evaluation.json").write_text(json.dumps({"metrics": flat | decided}))
    text = text_of(Path(build.build(config, run, data)).read_text())
    assert "The attention on plain has picked nothing out: about 18% everywhere in the image" in text
    assert "The attention on striped" not in text


def test_faint_attention_is_said(tmp_path: Path) -> None:
    config, run, data = fabricate(tmp_path)
    faint = {"attention_coverage_a": 0.2, "attention_spread_a": 0.14, "attention_opacity_a": 0.31}
    strong = {"attention_coverage_b": 0.2, "attention_spread_b": 0.3, "attention_opacity_b": 0.92}
    (Path(run) / "evaluation.json").write_text(json.dumps({"metrics": faint | strong}))
    text = text_of(Path(build.build(config, run, data)).read_text())
    assert "The attention on plain is faint: 0.31 on average where it is above τ" in text
    assert "The attention on striped" not in text
    # a discriminator of whole images has judged the blend as it is
    result = json.loads((Path(run) / "result.json").read_text())
    (Path(run) / "result.json").write_text(json.dumps(result | {"stage": "full"}))
    assert "is faint" not in text_of(Path(build.build(config, run, data)).read_text())


def test_what_people_did_after_the_decision_is_told(tmp_path: Path) -> None:
    config, run, data = fabricate(tmp_path)
    for version, action, reason in (
        (3, "gate", ""),
        (4, "gate", ""),
        (3, "rollback", "stripes on the <b>sky"),
    ):
        audit.record(
            config.storage,
            "demo",
            f"{action}-{version}",
            action=action,
            version=version,
            champion=version,
            reason=reason,
        )
    # of a version 9 that this registry does not have
    audit.record(
        config.storage, "demo", "gate-9", action="gate", version=9, champion=9, mlflow_run_id="another's"
    )
    html = Path(build.build(config, run, data)).read_text()
    text = text_of(html)
    assert "Champion now version 3" in text
    assert "rollback of version 3 by" in text
    assert "stripes on the &lt;b&gt;sky" in html
