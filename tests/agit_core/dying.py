"""``python -m tests.agit_core.dying FOLDER DIE_AT``: resumes from the newest checkpoint, saves every third step
and is killed by SIGKILL after step DIE_AT; without DIE_AT it finishes and writes its weights."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from agit_core.config import MethodConfig
from tests.agit_core import tiny


def method() -> MethodConfig:
    """With an average, attention at its own rate and a switch decided by what the masks did."""
    config = tiny.method(switch_by="settled", switch_at=2, settled_epochs=1, settled_tolerance=1.0)
    optimizer = replace(config.optimizer, average_decay=0.9, attention_learning_rate=5e-4)
    return replace(config, optimizer=optimizer)


def main(folder: Path, die_at: int | None) -> None:
    torch.set_num_threads(1)
    trainer = tiny.trainer(method())
    checkpoints = sorted(folder.glob("step-*"))
    if checkpoints:
        trainer.load(checkpoints[-1])
    for result in trainer.run(tiny.loader(trainer.plan)):
        if result.step % 3 == 0:
            trainer.save(folder / f"step-{result.step:03d}")
        if result.step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
    torch.save({"weights": tiny.weights(trainer), "averaged": trainer.averaged}, folder / "end.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
