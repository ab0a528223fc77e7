"""One training step of each preset beside the plain eager fp32 channels-first step of its original."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from agit_core.config import (
    HistoryConfig,
    LossConfig,
    MethodConfig,
    NetworkConfig,
    OptimizerConfig,
    PrecisionConfig,
    StageConfig,
)
from agit_core.loader import Batch
from agit_core.precision import make_deterministic, make_exact, pick_device, resolve
from agit_core.sampling import SamplePlan
from agit_core.trainer import Trainer
from tests.benchmarks.plain_step import PlainStep, as_on_gpus
from tests.benchmarks.result import Result, table

KEYS = ("step_ratio_default", "step_ratio_fp32", "step_ratio_presets")

SIZE = 256
FP32 = PrecisionConfig(autocast="off", channels_last="off", compile="off")
_STAGES = StageConfig(switch_at=10**6)
AGIT = MethodConfig(stages=_STAGES, history=HistoryConfig(size=4))
OTHERS = {
    # what presets h2z-cyclegan and h2z-uaggan train
    "cyclegan": MethodConfig(
        networks=NetworkConfig(preset="cyclegan"),
        losses=LossConfig(identity_weight=0.5),
        stages=_STAGES,
        history=HistoryConfig(size=4),
    ),
    "uaggan": MethodConfig(
        networks=NetworkConfig(preset="uaggan"),
        stages=_STAGES,
        history=HistoryConfig(size=0),
        optimizer=OptimizerConfig(attention_learning_rate=0.0),
    ),
}
PEER_SIZE, PEER_BATCHES = 128, (1, 4)


def run(size: int = SIZE, rounds: int = 5, warm_up: int = 2) -> Result:
    """Preset agit at 256 px with batch 1, then the other presets as their originals train them."""
    result, peers = agit(size, rounds, warm_up), others(min(size, PEER_SIZE), rounds, warm_up)
    return Result({**result.keys, **peers.keys}, [*result.lines, "", *peers.lines])


def others(size: int, rounds: int, warm_up: int) -> Result:
    """Steps of pytorch-CycleGAN and of the first port over ours, in fp32; seconds of the processor without a GPU."""
    device = pick_device()
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    ratios: dict[str, float] = {}
    rows = []
    for (name, config), batch in itertools.product(OTHERS.items(), PEER_BATCHES):
        steps = {
            "plain": plain(size, device, config, batch),
            "ours": ours(PrecisionConfig(autocast="off"), size, device, config, batch),
        }
        times = _in_turns(steps, rounds, warm_up, device, clock)
        best = {which: statistics.median(t) for which, t in times.items()}
        ratios[f"{name}_batch_{batch}"] = round(best["plain"] / best["ours"], 3)
        rows.append((f"{name}, batch {batch}", best["plain"], best["ours"], best["plain"] / best["ours"]))
    numerics = resolve(PrecisionConfig(autocast="off"), device)
    return Result(
        {"step_ratio_presets": ratios},
        [
            f"{size} x {size}, fp32, ours: {numerics.describe()}",
            *table(("step", "seconds plain", "ours", "plain over ours"), rows),
        ],
    )


def _in_turns(
    steps: dict[str, Callable[[], Any]],
    rounds: int,
    warm_up: int,
    device: torch.device,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warm_up + rounds):
        for name, step in steps.items():
            begun = clock()
            step()
            _wait(device)
            if turn >= warm_up:
                times[name].append(clock() - begun)
    return times


def agit(size: int, rounds: int, warm_up: int) -> Result:
    """Plain, ours in plain fp32 and ours by default take turns; ratios of the median times.

    Both compute the same step of stage ``full`` with batch 1 (a test holds them to it). A peak is what the same
    machine reaches in one large square matrix product, in fp32 for the fp32 steps and in bf16 for autocast.
    """
    device = pick_device()
    numerics = resolve(PrecisionConfig(), device)
    steps: dict[str, Callable[[], Any]] = {
        "plain": plain(size, device),
        "ours, fp32": ours(FP32, size, device),
        "ours, default": ours(PrecisionConfig(), size, device),
    }
    types = {"ours, default": numerics.autocast or torch.float32}
    # from an eager step, whose operations can be counted; ours needs fewer, as attention is upsampled last
    flops = {"plain": count(steps["plain"]), "ours": count(ours(FP32, size, device))}
    times = _in_turns(steps, rounds, warm_up, device, time.perf_counter)
    seconds = {name: statistics.median(t) for name, t in times.items()}
    peaks = {dtype: matrix_peak(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    rows, rates = [], {}
    for name in steps:
        rate = flops[name.split(",")[0]] / seconds[name]
        share = rate / peaks[types.get(name, torch.float32)]
        rates[name] = {"flop_per_s": round(rate), "share_of_matrix_peak": round(share, 3)}
        ratio, best = seconds["plain"] / seconds[name], min(times["plain"]) / min(times[name])
        rows.append((name, seconds[name], ratio, best, rate / 1e9, f"{share:.0%}"))
    return Result(
        {
            "step_ratio_default": round(seconds["plain"] / seconds["ours, default"], 3),
            "step_ratio_fp32": round(seconds["plain"] / seconds["ours, fp32"], 3),
            "step_seconds": {name: round(s, 4) for name, s in seconds.items()},
            "step_flops": flops,
            "step_rates": rates,
            "matrix_peak_flop_per_s": {str(dtype)[6:]: round(peak) for dtype, peak in peaks.items()},
        },
        [
            f"{device.type}, {torch.get_num_threads()} threads, default: {numerics.describe()}; "
            f"{flops['plain'] / 1e9:.0f} GFLOP a plain step, {flops['ours'] / 1e9:.0f} ours; matrix peak "
            + ", ".join(f"{peak / 1e9:.0f} GFLOP/s {str(dtype)[6:]}" for dtype, peak in peaks.items()),
            *table(("step", "seconds", "plain over it", "of the fastest", "GFLOP/s", "of peak"), rows),
        ],
    )


def ours(
    precision: PrecisionConfig, size: int, device: torch.device, config: MethodConfig = AGIT, batch: int = 1
) -> Callable[[], Any]:
    """Our step, on the same images over and over."""
    trainer = _trainer(replace(config, precision=precision), size, device, batch)
    a, b = _images(size, device, batch)

    def step() -> Any:
        # of the whole process, and the others want them otherwise
        make_exact(trainer.numerics, device)
        make_deterministic(device, trainer.config.precision.deterministic)
        return trainer.train_on(Batch(trainer.step, 0, a, b))

    return step


def plain(size: int, device: torch.device, config: MethodConfig = AGIT, batch: int = 1) -> Callable[[], Any]:
    """The yardstick, with the same initial weights, and PyTorch's settings as they come: on GPUs TF32 in cuDNN."""
    trainer = _trainer(replace(config, precision=FP32), size, device, batch)
    plain_step = PlainStep(trainer.networks, trainer.config, masked=False)
    a, b = _images(size, device, batch)

    def step() -> Any:
        make_deterministic(device, False)
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, False
        return plain_step(a, b)

    return step


def count(step: Callable[[], Any]) -> int:
    """Floating-point operations of the convolutions and matrix products of one call.

    Those that the mathematics asks for: our convolutions on blocks of pixels do more.
    """
    with as_on_gpus(), FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def matrix_peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a square matrix product, the best of several."""
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(8):
        begun = time.perf_counter()
        matrix @ matrix
        _wait(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _trainer(config: MethodConfig, size: int, device: torch.device, batch: int) -> Trainer:
    return Trainer(config, SamplePlan(0, 1000, 1000, batch), size, 10**6, device)


def _images(size: int, device: torch.device, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pair = torch.rand(2, batch, 3, size, size, generator=generator) * 2 - 1
    return pair[0].to(device), pair[1].to(device)
