"""Several processes are one: gradients and weights do not depend on the number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from agit_core.world import World
from tests.agit_core import tiny

pytestmark = pytest.mark.slow
_GLOO = "file://{}"


def _worker(rank: int, size: int, folder: str, batch: int, plan: list[tuple[str, Any]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=_GLOO.format(Path(folder) / "store"), rank=rank, world_size=size)
    try:
        trainer = tiny.trainer(batch_size=batch, world=World.current())
        for verb, value in plan:
            if verb == "load":
                trainer.load(Path(value))
            elif verb == "train":
                tiny.train(trainer, value)
            elif verb == "save":
                trainer.save(Path(value))
        step = trainer.training_step
        gradients = {n: p.grad for n, p in trainer.networks.named_parameters() if p.grad is not None}
        torch.save(
            {"weights": tiny.weights(trainer), "gradients": gradients, "window": trainer.window()._asdict()},
            Path(folder) / f"rank-{rank}.pt",
        )
        assert step.rules is not None
    finally:
        dist.destroy_process_group()


def run(folder: Path, size: int, batch: int, *plan: tuple[str, Any]) -> list[dict[str, Any]]:
    folder.mkdir()
    mp.spawn(_worker, (size, str(folder), batch, list(plan)), nprocs=size)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"rank-{r}.pt", weights_only=True) for r in range(size)]


def alone(batch: int, until: int) -> dict[str, Any]:
    trainer = tiny.trainer(batch_size=batch)
    tiny.train(trainer, until)
    gradients = {n: p.grad for n, p in trainer.networks.named_parameters() if p.grad is not None}
    return {"weights": tiny.weights(trainer), "gradients": gradients, "window": trainer.window()._asdict()}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of any network.

    Not of any tensor: the gradient of a bias in front of an instance norm is zero but for rounding, and Adam
    makes a full step out of its sign.
    """
    assert one.keys() == other.keys()
    networks = {k.split(".")[0] for k in one}

    def flat(of: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        return torch.cat([v.flatten() for k, v in sorted(of.items()) if k.startswith(name)])

    return max(float((flat(one, n) - flat(other, n)).norm() / flat(one, n).norm()) for n in networks)


@pytest.mark.parametrize(("batch", "size"), [(2, 2), (3, 2)], ids=["even", "uneven"])
def test_two_workers_are_one_with_the_whole_batch(tmp_path: Path, batch: int, size: int) -> None:
    """First gradients of each stage to 1e-3 relative (fp32 sums in another order), weights after k steps too."""
    # 7 items an epoch: the first masked step is 4 with batch 2 and 3 with batch 3
    switch = 4 if batch == 2 else 3
    for until in (1, switch + 1):
        ranks = run(tmp_path / f"to-{until}", size, batch, ("train", until))
        one = alone(batch, until)
        for other in ranks:
            print("differences", difference(one["weights"], other["weights"]), difference(one["gradients"], other["gradients"]))
            assert difference(one["weights"], other["weights"]) < 1e-2
            assert difference(one["gradients"], other["gradients"]) < (1e-4 if until == 1 else 5e-2)
        assert tiny.same(ranks[0]["weights"], ranks[1]["weights"]), "ranks must agree bit for bit"
        assert ranks[0]["window"]["losses"] == pytest.approx(one["window"]["losses"], rel=1e-3, abs=1e-6)
        has_attention = any(n.startswith("attention") for n in ranks[0]["gradients"])
        assert has_attention == (until == 1)


def test_two_workers_resume_exactly_and_one_can_take_over(tmp_path: Path) -> None:
    straight = run(tmp_path / "straight", 2, 2, ("train", tiny.TOTAL))
    saved = str(tmp_path / "checkpoint")
    run(tmp_path / "first", 2, 2, ("train", 3), ("save", saved))
    second = run(tmp_path / "second", 2, 2, ("load", saved), ("train", tiny.TOTAL))
    assert tiny.same(straight[0]["weights"], second[0]["weights"])
    single = tiny.trainer()
    single.load(Path(saved))
    assert len(single.training_step.history_a.state()) == 2, "both ranks' parts of the pool must be there"
    tiny.train(single, 6)
    whole = tiny.trainer()
    tiny.train(whole, 6)
    assert difference(tiny.weights(whole), tiny.weights(single)) < 2e-3
