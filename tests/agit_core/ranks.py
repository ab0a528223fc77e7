"""Real data-parallel processes over gloo, for tests: each runs a list of scenarios and writes what it got."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from agit_core.config import MethodConfig
from agit_core.errors import Diverged
from agit_core.trainer import Trainer
from agit_core.world import World
from tests.agit_core import tiny


class Scenario(NamedTuple):
    """One run: load, train to a step, save; what it left is written under its name."""

    name: str
    method: MethodConfig
    batch_size: int
    until: int
    load: str | None = None
    save: str | None = None
    device: str = "cpu"
    poisoned_rank: int | None = None
    """Whose next batch holds a NaN; what every rank then says about losses and weights is all that is returned."""
    microbatch: int | None = None


def play(scenario: Scenario, world: World | None = None) -> dict[str, Any]:
    """Weights, averaged weights, last gradients and figures of a scenario, in this process."""
    trainer = tiny.trainer(
        scenario.method, scenario.batch_size, world, device=scenario.device, microbatch=scenario.microbatch
    )
    if scenario.load:
        trainer.load(Path(scenario.load))
    tiny.train(trainer, scenario.until)
    if scenario.poisoned_rank is not None:
        return _divergence(trainer, trainer.world.rank == scenario.poisoned_rank)
    if scenario.save:
        trainer.save(Path(scenario.save))
    return {
        "weights": tiny.weights(trainer),
        "averaged": trainer.averaged,
        "gradients": gradients(trainer),
        "window": trainer.window()._asdict(),
        "stage": trainer.stages.stage.value,
        "coverage": trainer.training_step.coverage.state_dict(),
    }


def _divergence(trainer: Trainer, poisoned: bool) -> dict[str, str]:
    trainer.window()
    batch = tiny.next_batch(trainer)
    if poisoned:
        batch.a[0, 0, 0, 0] = torch.nan
    trainer.train_on(batch)
    told = {}
    try:
        trainer.check_losses(trainer.window())
    except Diverged as error:
        told["losses"] = str(error)
    try:
        trainer.snapshot()
    except Diverged as error:
        told["weights"] = str(error)
    return told


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in trainer.networks.named_parameters() if p.grad is not None}


def _rank(rank: int, size: int, folder: str, scenarios: list[Scenario], die: bool) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    for scenario in scenarios:
        result = play(scenario, World.current())
        torch.save(result, f"{folder}/{scenario.name}-{rank}.pt")
    dist.barrier()
    if die:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.destroy_process_group()


def run(
    folder: Path, size: int, scenarios: Sequence[Scenario], die: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Name -> what each rank got. ``die``: the processes end by SIGKILL when everything is written."""
    folder.mkdir(parents=True)
    with suppress(mp.ProcessExitedException if die else ()):
        mp.spawn(_rank, (size, str(folder), list(scenarios), die), nprocs=size)  # type: ignore[no-untyped-call]
    return {
        s.name: [torch.load(folder / f"{s.name}-{r}.pt", weights_only=True) for r in range(size)]
        for s in scenarios
    }


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of any network, relative to the norm of that network's numbers."""
    assert one.keys() == other.keys()

    def flat(of: dict[str, Tensor], network: str) -> Tensor:
        names = sorted(n for n in of if n.split(".")[0] == network)
        return torch.cat([of[n].flatten() for n in names])

    networks = {name.split(".")[0] for name in one}
    return max(float((flat(one, n) - flat(other, n)).norm() / flat(one, n).norm()) for n in networks)
