"""A short hunt; ``make chaos`` is the long one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config import Config
from tests.chaos import run
from tests.chaos.__main__ import main


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_nothing_but_time_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker, the driver and the storage; the other kinds have tests of their own or come with the long hunt."""
    out = tmp_path / "chaos.json"
    kinds = ("worker", "driver", "storage")
    status = main(["--kills", "3", "--kinds", *kinds, "--out", str(out), "--folder", str(tmp_path / "runs")])
    told = json.loads(out.read_text())
    assert status == 0
    assert (told["kills"], told["recoveries"]) == (3, 3)
    assert told["by_kind"] == dict.fromkeys(kinds, 1)
    assert told["identical"] is True
    assert told["differences"] == []
    assert 0 <= told["max_steps_redone"] <= told["checkpoint_interval"] == run.INTERVAL
    assert told["steps"] > 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line.startswith("chaos: 3 kills (1 driver, 1 storage, 1 worker), 3 recoveries")
    assert "identical after" in line


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_run_that_does_not_get_over_a_kill_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that may not fail even once loses a worker."""
    usual = run._config

    def strict(uri: str, steps: int) -> Config:
        config = usual(uri, steps)
        return config.model_copy(update={"train": config.train.model_copy(update={"max_failures": 0})})

    monkeypatch.setattr(run, "_config", strict)
    monkeypatch.setattr(run, "_SPARE_STEPS", 0)  # nothing has to be outlasted
    out = tmp_path / "chaos.json"
    folder = str(tmp_path / "runs")
    assert main(["--kills", "1", "--kinds", "worker", "--out", str(out), "--folder", folder]) == 1
    told = json.loads(out.read_text())
    assert (told["kills"], told["recoveries"], told["identical"]) == (1, 0, False)
    assert "with status 1" in told["failure"]
    assert told["failure"] in capsys.readouterr().out.splitlines()[-1]
