"""``agit_core`` needs torch and torchvision alone."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from agit_core.config import HistoryConfig, LossConfig, MethodConfig, OptimizerConfig, StageConfig
from agit_core.errors import BadInput

WITHOUT = """
import importlib, pkgutil, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in refused else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import agit_core
modules = [m.name for m in pkgutil.walk_packages(agit_core.__path__, "agit_core.")]
"""
PIPELINE = [
    *("ray", "prefect", "mlflow", "pydantic", "pyarrow", "fsspec", "s3fs", "boto3", "botocore", "yaml"),
    *("sqlalchemy", "safetensors", "scipy", "pipeline", "infra"),
]


def python(code: str, refused: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"refused = {refused!r}\n{WITHOUT}{code}"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_training_needs_torch_and_nothing_else() -> None:
    """Not even numpy: a whole training step, checkpoint and resume."""
    python(
        """
import tempfile, pathlib
from tests.agit_core import tiny
trainer = tiny.trainer()
tiny.train(trainer, 1)
with tempfile.TemporaryDirectory() as folder:
    trainer.save(pathlib.Path(folder) / "c")
    other = tiny.trainer()
    other.load(pathlib.Path(folder) / "c")
assert tiny.same(tiny.weights(trainer), tiny.weights(other))
from agit_core import preview
preview.strips(other.networks, tiny.next_batch(other).a, "a2b")
assert "numpy" not in sys.modules
""",
        [*PIPELINE, "numpy", "PIL", "torchmetrics"],
    )


def test_every_module_imports_with_torch_and_torchvision() -> None:
    """numpy and pillow are torchvision's own; the scores' distances are torchmetrics' and say so."""
    python(
        """
for name in modules:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert name.startswith("agit_core.scores.") and error.name.startswith("torchmetrics"), name
""",
        [*PIPELINE, "torchmetrics"],
    )


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (StageConfig(tau=3), "stages.tau"),
        (StageConfig(switch_at=-1), "stages.switch_at"),
        (StageConfig(settled_epochs=0), "stages.settled_epochs"),
        (OptimizerConfig(learning_rate=0), "optimizer.learning_rate"),
        (OptimizerConfig(average_decay=1.0), "optimizer.average_decay"),
        (OptimizerConfig(constant_fraction=1.5), "optimizer.constant_fraction"),
        (HistoryConfig(size=-1), "history.size"),
        (HistoryConfig(probability=2), "history.probability"),
        (LossConfig(cycle_weight=-1), "losses.cycle_weight"),
        (LossConfig(identity_weight=-1), "losses.identity_weight"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_impossible_settings_are_refused_by_name(section: object, key: str) -> None:
    with pytest.raises(BadInput, match=key.replace(".", r"\.")):
        replace(MethodConfig(), **{key.split(".")[0]: section})  # type: ignore[arg-type]
