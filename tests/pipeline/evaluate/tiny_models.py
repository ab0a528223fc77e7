"""Tiny models and generated images, for the tests of evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from agit_core import checkpoint, networks, saved_method
from agit_core.checkpoint import Snapshot
from agit_core.config import MethodConfig, NetworkConfig
from pipeline import storage
from pipeline.config import Config
from pipeline.records import RESULT, Result

SIDE = 32
IMAGES = 8
METHOD = MethodConfig(
    networks=NetworkConfig(generator_width=4, generator_blocks=1, attention_width=4, discriminator_width=4)
)


def settings_tree(root: Path) -> dict[str, Any]:
    """A configuration of generated images, as a tree."""
    return {
        "name": "tiny",
        "storage": str(root / "state"),
        "data": {
            "image_size": SIDE,
            "load_size": SIDE + 8,
            "encoding": "png",
            "builtin": {"train": 6, "test": IMAGES, "size": SIDE + 8},
            "workers": 1,
        },
        "evaluate": {"subsets": 4, "subset_size": 6, "bootstrap": 50, "device": "cpu"},
    }


def write_run(config: Config, run_id: str, net: nn.Module, method: MethodConfig = METHOD) -> str:
    """Write a finished run with these networks; return its URI."""
    uri = storage.join(config.storage, "runs", run_id)
    folder = storage.local_path(storage.join(uri, "checkpoint"))
    info = {"step": 1, "epoch": 0, "stage": "full", "image_size": SIDE}
    info["method"] = saved_method.to_dict(method)
    checkpoint.write(folder, Snapshot(info, net.state_dict(), {}, {}, {}))
    RESULT.write(uri, Result(run_id=run_id, steps=1, checkpoint=str(folder)))
    return uri


def attending(value: float, seed: int = 1) -> nn.Module:
    """Networks whose attention is the same everywhere, and near ``value``."""
    net = networks.build(METHOD.networks, seed)
    for attention in (net.attention_a, net.attention_b):
        assert attention is not None
        last = [m for m in attention.modules() if isinstance(m, nn.Conv2d)][-1]
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.constant_(last.bias, float(torch.logit(torch.tensor(value))))
    return net
