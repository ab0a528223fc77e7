"""``agit_core`` needs torch and torchvision alone; its numerics are switches over one mathematics."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from agit_core.config import MethodConfig, OptimizerConfig, PrecisionConfig, StageConfig
from agit_core.errors import BadInput
from tests.agit_core import tiny

REFUSES = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"ray", "prefect", "mlflow", "pydantic", "pyarrow", "s3fs", "boto3", "pipeline"}:
            raise ImportError(f"agit_core must not import {name}")
sys.meta_path.insert(0, Refuse())
import agit_core.trainer, agit_core.checkpoint, agit_core.preview, agit_core.loader
from tests.agit_core import tiny
trainer = tiny.trainer()
tiny.train(trainer, 2)
"""


def test_training_needs_no_pipeline() -> None:
    subprocess.run([sys.executable, "-c", REFUSES], check=True)


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [({"channels_last": "on"}, 1e-4), ({"autocast": "bf16"}, 0.1), ({"deterministic": False}, 1e-4)],
    ids=["channels_last", "bf16", "not deterministic"],
)
def test_precision_switches_compute_the_same_losses(change: dict[str, object], tolerance: float) -> None:
    reference = PrecisionConfig(autocast="off", channels_last="off", compile="off")
    figures = []
    for precision in (reference, replace(reference, **change)):  # type: ignore[arg-type]
        trainer = tiny.trainer(replace(tiny.method(), precision=precision))
        figures.append(trainer.train_on(tiny.next_batch(trainer)).figures[:8])
    assert torch.allclose(figures[0], figures[1], rtol=tolerance, atol=tolerance)


def test_impossible_settings_are_refused_by_name() -> None:
    with pytest.raises(BadInput, match=r"stages\.tau"):
        MethodConfig(stages=StageConfig(tau=3))
    with pytest.raises(BadInput, match=r"learning_rate"):
        MethodConfig(optimizer=OptimizerConfig(learning_rate=0))
