"""``python -m tests.benchmarks.scaling``: how data-parallel training scales to 64 GPUs, from what a step costs.

FLOPs and bytes of a step are measured here; what a GPU and a network do with them is assumed (:class:`Machine`)
and stands beside the result. ``infra/SCALING.md`` explains the model and holds its tables; a test keeps both
alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from agit_core.config import HistoryConfig, MethodConfig, PrecisionConfig, StageConfig
from agit_core.loader import Batch
from agit_core.sampling import SamplePlan
from agit_core.step import DISCRIMINATOR_NAMES
from agit_core.trainer import Trainer
from agit_core.world import World
from tests.benchmarks.plain_step import as_on_gpus

GPUS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Step:
    """What one training step costs, whatever computes it."""

    flops: float
    """Of one image per domain, forward and backward, all networks."""
    operations: int
    """Kernels that a step launches, whatever the batch."""
    generator_bytes: int
    """Gradients that the ranks exchange in the generators' and attention's half of the step (fp32)."""
    discriminator_bytes: int
    """The same for the discriminators' half."""
    buckets: int
    """Messages per step: DDP sends a network's gradients in buckets of 25 MiB, the first of 1 MiB."""
    checkpoint_bytes: int
    """Weights, both moments of Adam, history."""


@dataclass(frozen=True)
class Machine:
    """GPUs and what connects them: assumptions, not measurements."""

    peak_flops: float = 989e12
    """Dense bf16 of an H100 (data sheet)."""
    utilisation: float = 0.15
    """Share of the peak that narrow convolutions (32 to 128 channels) reach."""
    launch: float = 4e-6
    """Seconds that a kernel takes at least: the host launches them one by one (eager)."""
    node_bandwidth: float = 300e9
    """Bytes per second and GPU within a node: NVLink's 450 GB/s, two thirds of it for all-reduce."""
    network_bandwidth: float = 40e9
    """Bytes per second and GPU between nodes: one 400 Gbit/s adapter per GPU, 80 % of it."""
    latency: float = 15e-6
    """Seconds that each of a ring's steps takes beyond the bytes: launch and wire."""
    gpus_per_node: int = 8
    overlap: float = 0.5
    """Share of the backward pass behind which communication hides: DDP sends while earlier layers compute."""


MEASURED = Step(
    flops=434075148288.0,
    operations=1964,
    generator_bytes=23654944,
    discriminator_bytes=22125576,
    buckets=10,
    checkpoint_bytes=137372792,
)
"""Of the preset h2z at 256 x 256: what :func:`measure` gives."""
ETHERNET = Machine(node_bandwidth=20e9, network_bandwidth=2.5e9, latency=40e-6)
"""PCIe within a node, eight GPUs on 200 Gbit/s of Ethernet between them."""


def all_reduce_seconds(size: float, buckets: int, gpus: int, machine: Machine) -> float:
    """Time of a hierarchical ring: reduced within the node, between nodes, and spread within the node.

    A ring over n members moves ``2 (n - 1) / n`` of the bytes through each and takes ``2 (n - 1)`` steps. Between
    nodes each GPU carries the part that it reduced.
    """
    within = min(gpus, machine.gpus_per_node)
    nodes = -(-gpus // machine.gpus_per_node)
    seconds = _ring(size, within, machine.node_bandwidth)
    seconds += _ring(size / within, nodes, machine.network_bandwidth)
    return seconds + buckets * machine.latency * 2 * ((within - 1) + (nodes - 1))


def _ring(size: float, members: int, bandwidth: float) -> float:
    return 2 * (members - 1) / members * size / bandwidth


def step_seconds(step: Step, gpus: int, per_gpu: int, machine: Machine) -> tuple[float, float]:
    """(computing, communication that nothing hides), with ``per_gpu`` images of each domain on each GPU."""
    arithmetic = step.flops * per_gpu / (machine.peak_flops * machine.utilisation)
    computing = max(arithmetic, step.operations * machine.launch)
    backward = computing * 2 / 3
    size = step.generator_bytes + step.discriminator_bytes
    communication = all_reduce_seconds(size, step.buckets, gpus, machine)
    return computing, max(0.0, communication - machine.overlap * backward)


def efficiency(step: Step, gpus: int, per_gpu: int, machine: Machine) -> float:
    """Images per second over ``gpus`` times those of one GPU."""
    computing, exposed = step_seconds(step, gpus, per_gpu, machine)
    return computing / (computing + exposed)


def measure(size: int = 256) -> Step:
    """Counts a step of the default method: FLOPs by PyTorch's counter, bytes by what is trained."""
    method = MethodConfig(
        stages=StageConfig(switch_at=10**6),
        history=HistoryConfig(size=4),
        precision=PrecisionConfig(autocast="off", channels_last="off", compile="off"),
    )
    trainer = Trainer(method, SamplePlan(0, 100, 100, 1), size, 10**6, torch.device("cpu"), world=World())
    image = torch.zeros(1, 3, size, size)
    with as_on_gpus(), FlopCounterMode(display=False) as counter, _Operations() as operations:
        trainer.train_on(Batch(0, 0, image, image))
    trained: dict[str, int] = {
        name: sum(p.numel() * 4 for p in module.parameters() if p.requires_grad)
        for name, module in trainer.networks.named_children()
    }
    snapshot = trainer.snapshot()
    assert snapshot is not None
    weights = sum(t.nbytes for t in snapshot.networks.values())
    discriminators = sum(trained[name] for name in DISCRIMINATOR_NAMES)
    return Step(
        flops=float(counter.get_total_flops()),
        operations=operations.count,
        generator_bytes=sum(trained.values()) - discriminators,
        discriminator_bytes=discriminators,
        buckets=sum(_buckets(size) for size in trained.values() if size),
        checkpoint_bytes=weights + 2 * sum(trained.values()),
    )


class _Operations(TorchDispatchMode):
    """Counts what would be kernels on a GPU: operations that compute, not those that only look at a tensor anew."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def _buckets(size: int) -> int:
    first, rest = 2**20, 25 * 2**20
    return 1 if size <= first else 1 + -(-(size - first) // rest)


def tables(step: Step = MEASURED) -> list[str]:
    """Efficiencies for both networks and two sizes of the batch, as Markdown."""
    lines = []
    for name, machine in (("NVLink and InfiniBand", Machine()), ("PCIe and Ethernet", ETHERNET)):
        lines += [
            f"**{name}**",
            "",
            "| GPUs | nodes | images per GPU | ms computing | ms waiting | images/s | efficiency |",
        ]
        lines.append("|--:|--:|--:|--:|--:|--:|--:|")
        for per_gpu in (1, 4):
            for gpus in GPUS:
                computing, exposed = step_seconds(step, gpus, per_gpu, machine)
                rate = gpus * per_gpu / (computing + exposed)
                cells = [gpus, -(-gpus // machine.gpus_per_node), per_gpu, f"{computing * 1e3:.2f}"]
                cells += [f"{exposed * 1e3:.2f}", f"{rate:.0f}", f"{computing / (computing + exposed):.2f}"]
                lines.append("| " + " | ".join(map(str, cells)) + " |")
        lines.append("")
    return lines


if __name__ == "__main__":
    print(measure())
    print("\n".join(tables()))
