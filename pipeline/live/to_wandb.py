"""A training in Weights & Biases: offline, to be sent by ``wandb sync``, unless a key or ``WANDB_MODE`` is set."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import wandb

from pipeline import storage
from pipeline.config import Config
from pipeline.live.sink import State, numbers
from pipeline.records import Tree
from pipeline.redact import redact


class WandbSink:
    """A W&B run named as ours, in ``wandb/`` of the run's folder (of ``.agit`` where that is in object storage)."""

    name = "Weights & Biases"

    def __init__(self, config: Config, run_id: str, run_uri: str) -> None:
        self._config = config
        self._run_id = run_id
        self._folder = Path(".agit") if storage.is_remote(run_uri) else storage.local_path(run_uri)

    def open(self) -> set[int]:
        self._folder.mkdir(parents=True, exist_ok=True)
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        self._run = wandb.init(
            project=self._config.name,
            id=self._run_id,
            name=self._run_id,
            dir=self._folder,
            mode=mode,  # type: ignore[arg-type]
            resume="allow" if mode == "online" else None,
            config=redact(self._config.plain()),
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True),
        )
        # a separate axis: wandb refuses earlier steps, and pictures come after the rows of later steps
        self._run.define_metric("*", step_metric="train_step")
        return set()

    def rows(self, rows: Sequence[Tree]) -> None:
        for row in rows:
            self._run.log({"train_step": int(row["step"]), **dict(numbers(row))})

    def pictures(self, step: int, sheets: Mapping[str, bytes]) -> None:
        from PIL import Image

        images = {f"samples/{d}": wandb.Image(Image.open(io.BytesIO(sheet))) for d, sheet in sheets.items()}
        self._run.log({"train_step": step, **images})

    def close(self, state: State) -> None:
        self._run.finish(exit_code=0 if state == "FINISHED" else 1)
