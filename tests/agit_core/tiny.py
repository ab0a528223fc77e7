"""A training run small enough for tests: 32 px, narrow networks, random images that depend on a seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from agit_core.config import (
    HistoryConfig,
    MethodConfig,
    NetworkConfig,
    OptimizerConfig,
    PrecisionConfig,
    StageConfig,
)
from agit_core.loader import Batch, Loader
from agit_core.sampling import SamplePlan
from agit_core.trainer import Trainer
from agit_core.world import World

SIZE = 32
LENGTHS = (7, 5)
TOTAL = 16
REFERENCE = PrecisionConfig(autocast="off", channels_last="off", compile="off")
"""Tests of the mathematics must not depend on what the machine is fast at."""


class Images:
    """Random uint8 images in memory."""

    def __init__(self, length: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.pixels = torch.randint(0, 256, (length, 3, 36, 36), generator=generator).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> Tensor:
        return self.pixels[index]


def method(**stages: Any) -> MethodConfig:
    """Narrow networks, a small pool, the switch at epoch 1 by default; fp32, eager, channels first."""
    return MethodConfig(
        networks=NetworkConfig(
            generator_width=4,
            generator_blocks=1,
            attention_width=4,
            discriminator_width=4,
            # masks of networks as small as these then lie on both sides of 0.5, where tests put tau
            initialisation="normal",
        ),
        stages=replace(StageConfig(switch_at=1), **stages),
        history=HistoryConfig(size=4),
        optimizer=OptimizerConfig(learning_rate=2e-3),
        precision=REFERENCE,
    )


def calm(config: MethodConfig) -> MethodConfig:
    """With the paper's small rate: at :func:`method`'s, a rounding difference grows twentyfold in each step."""
    return replace(config, optimizer=replace(config.optimizer, learning_rate=2e-4))


def plan(batch_size: int = 2) -> SamplePlan:
    return SamplePlan(3, *LENGTHS, batch_size)


def loader(sample_plan: SamplePlan) -> Loader:
    return Loader({"a": Images(LENGTHS[0], 1), "b": Images(LENGTHS[1], 2)}, sample_plan, SIZE)


def trainer(
    config: MethodConfig | None = None,
    batch_size: int = 2,
    world: World | None = None,
    total: int = TOTAL,
    device: str = "cpu",
    **memory: Any,
) -> Trainer:
    return Trainer(
        config or method(), plan(batch_size), SIZE, total, torch.device(device), seed=5, world=world, **memory
    )


def train(to: Trainer, until: int | None = None) -> None:
    for _ in to.run(loader(to.plan), until):
        pass


def next_batch(of: Trainer) -> Batch:
    """The batch of the trainer's next step."""
    return next(loader(of.plan).batches(of.step, of.slots, of.step + 1))


def weights(of: Trainer) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in of.networks.state_dict().items()}


def everything(of: Trainer) -> dict[str, Tensor]:
    """All that a run has become, as tensors by name."""
    snapshot = of.snapshot()
    assert snapshot is not None
    flat: dict[str, Tensor] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            flat[name] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                add(f"{name}.{key}", inner)
        elif isinstance(value, list | tuple):
            for key, inner in enumerate(value):
                add(f"{name}.{key}", inner)
        elif value is not None and not isinstance(value, str):
            flat[name] = torch.tensor(float(value), dtype=torch.float64)

    for part in ("networks", "averaged", "training", "history"):
        add(part, getattr(snapshot, part))
    # of the process, not of the run: building networks in a test draws from it
    del flat["training.torch_random_state"]
    return flat


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
