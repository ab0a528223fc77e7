"""One training step at 256 x 256, preset agit, beside the plain eager fp32 channels-first step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from agit_core.config import HistoryConfig, MethodConfig, PrecisionConfig, StageConfig
from agit_core.loader import Batch
from agit_core.precision import pick_device
from agit_core.sampling import SamplePlan
from agit_core.trainer import Trainer
from tests.benchmarks.plain_step import PlainStep
from tests.benchmarks.result import Result, table

KEYS = ("step_ratio_default", "step_ratio_fp32")

SIZE = 256
FP32 = PrecisionConfig(autocast="off", channels_last="off", compile="off")


def run(rounds: int = 5, warm_up: int = 2) -> Result:
    """Plain, ours in plain fp32 and ours by default take turns; ratios of the median times."""
    device = pick_device()
    steps: dict[str, Callable[[], Any]] = {
        "plain": _plain(device),
        "ours, fp32": _ours(FP32, device),
        "ours, default": _ours(PrecisionConfig(), device),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warm_up + rounds):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= warm_up:
                times[name].append(time.perf_counter() - begun)
    seconds = {name: statistics.median(t) for name, t in times.items()}
    ratio = {name: seconds["plain"] / s for name, s in seconds.items()}
    rows = [(name, s, ratio[name]) for name, s in seconds.items()]
    return Result(
        {
            "step_ratio_default": round(ratio["ours, default"], 3),
            "step_ratio_fp32": round(ratio["ours, fp32"], 3),
            "step_seconds": {name: round(s, 4) for name, s in seconds.items()},
        },
        table(("step", "seconds", "plain over it"), rows),
    )


def _config(precision: PrecisionConfig) -> MethodConfig:
    stages = StageConfig(switch_at=10**6)
    return MethodConfig(stages=stages, history=HistoryConfig(size=4), precision=precision)


def _images(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pair = torch.rand(2, 1, 3, SIZE, SIZE, generator=generator) * 2 - 1
    return pair[0].to(device), pair[1].to(device)


def _ours(precision: PrecisionConfig, device: torch.device) -> Callable[[], Any]:
    config = replace(_config(precision))
    trainer = Trainer(config, SamplePlan(0, 1000, 1000, 1), SIZE, 10**6, device)
    a, b = _images(device)
    return lambda: trainer.train_on(Batch(trainer.step, 0, a, b))


def _plain(device: torch.device) -> Callable[[], Any]:
    trainer = Trainer(_config(FP32), SamplePlan(0, 1000, 1000, 1), SIZE, 10**6, device)
    step = PlainStep(trainer.networks, trainer.config, masked=False)
    a, b = _images(device)
    return lambda: step(a, b)
