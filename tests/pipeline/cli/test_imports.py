"""What each command imports: seconds of start-up come from libraries that a command does not need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.command import environment

HEAVY = {
    "torch",
    "torchvision",
    "torchmetrics",
    "ray",
    "prefect",
    "mlflow",
    "pandas",
    "plotly",
    "scipy",
    "s3fs",
}
_CALL = """\
import sys
sys.argv = ["agit", *sys.argv[1:]]
from pipeline.cli.main import main
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
import json
print("IMPORTED", json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def imported(folder: Path, *arguments: str) -> set[str]:
    """Top-level packages that the command had imported when it ended."""
    done = subprocess.run(
        [sys.executable, "-c", _CALL, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    return set(json.loads(last.removeprefix("IMPORTED ")))


@pytest.mark.parametrize("call", [("--help",), ("run", "--help"), ("data", "--help")])
def test_help_loads_neither_the_schema_nor_a_terminal_library(tmp_path: Path, call: tuple[str, ...]) -> None:
    assert not imported(tmp_path, *call) & (HEAVY | {"rich", "yaml", "fsspec", "pyarrow"})


@pytest.mark.parametrize("call", [("presets", "--json"), ("config", "demo"), ("runs", "--json")])
def test_what_only_reads_files_loads_nothing_heavy(tmp_path: Path, call: tuple[str, ...]) -> None:
    (tmp_path / ".agit").mkdir()
    assert not imported(tmp_path, *call) & HEAVY


def test_preparing_loads_no_training_library(tmp_path: Path) -> None:
    small = ("data.builtin.train=2", "data.builtin.test=2", "data.builtin.size=40", "data.workers=1")
    arguments = [part for setting in small for part in ("--set", setting)]
    loaded = imported(tmp_path, "prepare", "demo", *arguments)
    assert not loaded & {"torch", "torchvision", "torchmetrics", "ray", "prefect", "mlflow", "plotly"}
