"""The runner of the benchmarks: finds them by file name, merges what they measured, keeps going."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as runner
from tests.benchmarks.result import Result, merge, table

CONTRACT = {
    "step_ratio_default",
    "step_ratio_fp32",
    "ddp_2_over_1",
    "data_wait_share",
    "checkpoint_share",
    "loader_over_imagefolder_local",
    "loader_over_webdataset_s3",
    "loader_over_streaming_s3",
    "loader_over_datasets_s3",
    "prepare_over_pillow_loop",
}


def test_every_benchmark_declares_its_keys_and_no_two_share_one() -> None:
    declared = [
        k for n in runner.names() for k in importlib.import_module(f"tests.benchmarks.bench_{n}").KEYS
    ]
    assert len(declared) == len(set(declared))
    assert set(declared) >= CONTRACT


def test_merging_keeps_what_others_wrote(tmp_path: Path) -> None:
    file = tmp_path / "out" / "bench.json"
    merge({"one": 1.5, "both": 1}, file)
    merge({"two": None, "both": 2}, file)
    assert json.loads(file.read_text()) == {"one": 1.5, "two": None, "both": 2}
    assert [f.name for f in file.parent.iterdir()] == ["bench.json"]


def test_a_benchmark_runs_and_its_keys_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("tests.benchmarks.bench_step")
    monkeypatch.setattr(
        module, "run", lambda: Result(dict.fromkeys(module.KEYS, 2.0), table(("x", "s"), [("y", 0.5)]))
    )
    runner.run_one("step", tmp_path / "bench.json")
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["step_ratio_default"] == 2.0
    assert written["machine"]["cores"]
    assert "y  0.5" in capsys.readouterr().out

    monkeypatch.setattr(module, "run", lambda: Result({}))
    with pytest.raises(KeyError, match="did not measure step_ratio_default, step_ratio_fp32"):
        runner.run_one("step", tmp_path / "bench.json")


def test_an_unknown_benchmark_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "spede"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert done.returncode == 2
    assert "there is no benchmark 'spede'" in done.stderr
