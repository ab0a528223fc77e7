"""What each command imports: seconds of start-up come from libraries that a command does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

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
names, *arguments = sys.argv[1:]
sys.argv = ["agit", *arguments]
from pipeline.cli.start import main
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
open(names, "w").write(" ".join({name.partition(".")[0] for name in sys.modules}))
"""


def imported(folder: Path, *arguments: str) -> set[str]:
    """Top-level packages that the command had imported when it ended."""
    names = folder / "names.txt"
    done = subprocess.run(
        [sys.executable, "-c", _CALL, str(names), *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(names.read_text().split())


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


def test_translating_loads_torch_and_no_other_heavy_library(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "horse.png")
    call = ("translate", "horse.png", "out.png", "--model", "pretrained:h2z128", "--json")
    loaded = imported(tmp_path, *call)
    assert loaded & HEAVY == {"torch"}
    assert not loaded & {"httpx", "jinja2", "pyarrow", "rich"}


def test_the_doctor_loads_torch_and_no_other_heavy_library(tmp_path: Path) -> None:
    assert imported(tmp_path, "doctor", "--json") & HEAVY == {"torch"}
