"""Tiny runs for the tests of training: seconds on one core, with every part real."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from agit_core import checkpoint, networks, saved_method
from agit_core.checkpoint import Snapshot
from pipeline import storage, tasks
from pipeline.config import Config, parse
from pipeline.data.format import manifest
from pipeline.data.prepare.stage import prepare
from pipeline.launch import specs
from pipeline.records import RESULT, Data, Owner, Result, Run, Spec
from pipeline.train import events as train_events

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {
        "image_size": 32,
        "load_size": 36,
        "builtin": {"train": 12, "test": 4, "size": 36},
        "workers": 1,
    },
    "method": {
        "networks": {
            "generator_width": 4,
            "generator_blocks": 1,
            "attention_width": 4,
            "discriminator_width": 4,
        },
        "stages": {"switch_by": "step", "switch_at": 15},
        "history": {"size": 4},
    },
    "train": {
        "epochs": 1000,
        "max_steps": 60,
        "batch_size": 2,
        "workers": 2,
        "device": "cpu",
        "threads_per_worker": 1,
        "log_every": 5,
        "sample_every": 40,
        "samples": 1,
        "checkpoint_every": 20,
        "report_to": [],
    },
}


def tiny(storage_uri: str | Path, **train: Any) -> Config:
    """The tiny configuration with some of its training settings changed."""
    return parse({**TINY, "storage": str(storage_uri), "train": TINY["train"] | train})


def prepared(root: str | Path) -> str:
    """URI of the prepared data of :data:`TINY`."""
    return prepare(tiny(root)).uri


def spec_of(config: Config, data_uri: str) -> Spec:
    """Specification of this configuration's job."""
    name = specs.run_id(config, manifest.read(data_uri))
    run_uri = storage.join(specs.absolute(config.storage), "runs", name)
    return Spec(
        run_id=name, run_uri=run_uri, data_uri=data_uri, config=config.plain(), attempt=1, owner=Owner()
    )


def untrained(config: Config, data: Data) -> Run:
    """A run as its training leaves it, with the weights that it begins with: for tests of what comes after."""
    name, uri = tasks.locate(config, data)
    step = config.train.max_steps or 0
    folder = storage.local_path(storage.join(uri, "checkpoints", f"step-{step:08d}"))
    info = {"step": step, "epoch": 0, "stage": "full", "image_size": config.data.image_size}
    info["method"] = saved_method.to_dict(config.method)
    weights = networks.build(config.method.networks, seed=0).state_dict()
    checkpoint.write(folder, Snapshot(info, weights, {}, {}, {}))
    result = Result(run_id=name, steps=step, checkpoint=str(folder))
    RESULT.write(uri, result)
    return Run(name, uri, result)


def read_checkpoint(uri: str) -> Snapshot:
    return checkpoint.read(storage.local_path(uri))


def differences(left: Any, right: Any, where: str = "") -> list[str]:
    """Where two checkpoints (or parts of them) are not bit for bit the same; their ``info`` is not compared."""
    if isinstance(left, Snapshot):
        parts = ("networks", "averaged", "training", "history")
        return [d for part in parts for d in differences(getattr(left, part), getattr(right, part), part)]
    if isinstance(left, torch.Tensor):
        same = isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
        return [] if same else [where]
    if isinstance(left, dict) and left.keys() == right.keys():
        return [d for key in left for d in differences(left[key], right[key], f"{where}.{key}")]
    if isinstance(left, list | tuple) and len(left) == len(right):
        return [
            d
            for i, pair in enumerate(zip(left, right, strict=True))
            for d in differences(*pair, f"{where}[{i}]")
        ]
    return [] if left == right else [where]


def starts(run_uri: str) -> list[tuple[int, int]]:
    """(workers, nodes) of each start of a run."""
    events = [e for e in train_events.read(run_uri) if e.kind in {"started", "resumed"}]
    return [(event.workers, event.nodes) for event in events]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 600) -> Any:
    """Polls until the condition holds and returns its result."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)
    return found
