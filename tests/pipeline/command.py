"""The command line as users call it: a separate process in a separate folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TINY = """\
name: tiny
data:
  image_size: 32
  load_size: 36
  builtin: {train: 6, test: 4, size: 40}
method:
  networks: {generator_width: 4, generator_blocks: 1, attention_width: 4, discriminator_width: 4}
  stages: {switch_by: step, switch_at: 2}
train: {max_steps: 4, batch_size: 2, workers: 1, device: cpu, threads_per_worker: 1, log_every: 1, sample_every: 2,
  checkpoint_every: 2, samples: 2, report_to: []}
evaluate: {subsets: 2, subset_size: 4, bootstrap: 10, device: cpu}
"""


@dataclass(frozen=True)
class Called:
    """A finished call."""

    status: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        lines = self.err.strip().splitlines()
        return lines[-1] if lines else ""

    @property
    def answer(self) -> Any:
        """The JSON on standard output, which must hold nothing else."""
        return json.loads(self.out)


def tiny_config(folder: Path) -> Path:
    """A configuration that passes all stages in seconds."""
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    return path


def environment(**changes: str) -> dict[str, str]:
    """The environment without what belongs to somebody's Prefect or Ray, or to the tests' own ONNX Runtime."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_", "MLFLOW_", "ORT_"))}
    # the code beside these tests, also where another checkout is installed
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [kept.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **changes}


def agit(*arguments: str | Path, cwd: Path, timeout: float = 540, **changes: str) -> Called:
    """Calls ``agit`` and waits for its end."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Called(done.returncode, done.stdout, done.stderr)
