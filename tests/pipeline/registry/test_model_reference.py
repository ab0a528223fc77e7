from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from agit_core.errors import BadInput
from pipeline import storage
from pipeline.config import load
from pipeline.registry.model_reference import describe, resolve
from tests.agit_core import models


def test_a_finished_runs_last_checkpoint_is_told_with_the_runs_scores(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "h2z-1"
    model = models.write_model(run / "checkpoints" / "step-00000040")
    storage.write_json(str(run / "result.json"), {"checkpoint": str(model), "steps": 40})
    storage.write_json(str(run / "spec.json"), {"run_id": "h2z-1", "attempt": 1})
    storage.write_json(
        str(run / "evaluation.json"), {"metrics": {"fid_a2b": 7}, "model": {"uri": str(model)}}
    )
    (run / "report.html").write_text("")
    chosen, config = resolve(str(run), load("demo", [])), load("demo", [])
    assert chosen.folder == str(model)
    told = describe(chosen, config)
    assert told["metrics"] == {"fid_a2b": 7}
    assert told["report"] == str(run / "report.html")
    assert told["model"] == {"name": "tiny", "version": None, "aliases": [], "uri": str(run)}
    # another checkpoint of the same run has no scores
    other = models.write_model(run / "checkpoints" / "step-00000020")
    assert describe(resolve(str(other), config), config)["metrics"] is None


@pytest.mark.parametrize("text", ["[]", "no JSON", '{"metrics"'])
def test_what_cannot_be_read_is_not_known(tmp_path: Path, text: str) -> None:
    """It only adds to the answer of a command that has done its work."""
    folder = models.write_model(tmp_path / "model")
    for name in ("evaluation.json", "model.json"):
        (folder / name).write_text(text)
        told = describe(resolve(str(folder), load("demo", [])), load("demo", []))
        assert (told["metrics"], told["report"]) == (None, None)


def test_the_packaged_model_is_what_demo_ui_takes_by_itself_and_brings_its_scores() -> None:
    from pipeline.cli import export

    uri = inspect.signature(export.demo_ui).parameters["model"].default
    config = load("demo", [])
    told = describe(resolve(uri, config), config)
    assert told["model"] == {"name": "h2z128", "version": None, "aliases": [], "uri": "pretrained:h2z128"}
    assert told["steps"] > 0
    assert 0 < told["metrics"]["kid_target_a2b"] < 1


def test_an_unknown_packaged_model_is_refused() -> None:
    with pytest.raises(BadInput, match="use pretrained:h2z128"):
        resolve("pretrained:zebra", load("demo", []))
