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


Case = tuple[int, int, list[tuple[str, Any]]]
"""Epoch of the switch, global batch, and what to do: ("train", until), ("save", folder), ("load", folder)."""


def _result(case: Case, world: World) -> dict[str, Any]:
    switch_at, batch, plan = case
    trainer = tiny.trainer(tiny.method(switch_at=switch_at), batch_size=batch, world=world)
    for verb, value in plan:
        if verb == "load":
            trainer.load(Path(value))
        elif verb == "train":
            tiny.train(trainer, value)
        elif verb == "save":
            trainer.save(Path(value))
    gradients = {n: p.grad for n, p in trainer.networks.named_parameters() if p.grad is not None}
    return {
        "weights": tiny.weights(trainer),
        "gradients": gradients,
        "losses": trainer.window().losses,
        "stage": trainer.stages.stage.value,
    }


def _worker(rank: int, size: int, folder: str, cases: list[Case]) -> None:
    torch.set_num_threads(1)
    store = f"file://{Path(folder) / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    try:
        results = [_result(case, World.current()) for case in cases]
        torch.save(results, Path(folder) / f"rank-{rank}.pt")
    finally:
        dist.destroy_process_group()


def together(folder: Path, size: int, *cases: Case) -> list[list[dict[str, Any]]]:
    """Results by rank, then by case; one set of processes runs all of them."""
    folder.mkdir()
    mp.spawn(_worker, (size, str(folder), list(cases)), nprocs=size)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"rank-{r}.pt", weights_only=True) for r in range(size)]


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


def test_two_workers_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    """fp32: first gradients to 1e-4 of their norm, weights after 4 steps to 1 % of theirs.

    In both stages, with 2 items on 2 ranks and with 3 (ranks have 1 and 2). Adam divides by the gradient's
    size, so rounding in a gradient that is zero but for rounding moves weights: hence the second bound.
    """
    cases: list[Case] = [
        (switch_at, batch, [("train", until)]) for switch_at in (0, 9) for batch in (2, 3) for until in (1, 4)
    ]
    one_rank, other_rank = together(tmp_path / "two", 2, *cases)
    for case, ours, theirs in zip(cases, one_rank, other_rank, strict=True):
        alone = _result(case, World())
        assert ours["stage"] == alone["stage"] == ("masked" if case[0] == 0 else "full")
        assert tiny.same(ours["weights"], theirs["weights"]), "ranks must agree bit for bit"
        assert tiny.same(ours["gradients"], theirs["gradients"])
        assert any(n.startswith("attention") for n in ours["gradients"]) == (case[0] != 0)
        if case[2] == [("train", 1)]:
            assert difference(alone["gradients"], ours["gradients"]) < 1e-4
        assert difference(alone["weights"], ours["weights"]) < 1e-2
        assert ours["losses"] == pytest.approx(alone["losses"], rel=1e-2, abs=1e-6)
        assert ours["losses"] == theirs["losses"]


def test_two_workers_resume_exactly_and_one_can_take_over(tmp_path: Path) -> None:
    saved = str(tmp_path / "checkpoint")
    end = ("train", tiny.TOTAL)
    straight, _, second = together(
        tmp_path / "runs",
        2,
        (1, 2, [end]),
        (1, 2, [("train", 3), ("save", saved)]),
        (1, 2, [("load", saved), end]),
    )[0]
    assert tiny.same(straight["weights"], second["weights"])
    single = tiny.trainer()
    single.load(Path(saved))
    assert len(single.training_step.history_a.state()) == 2, "both ranks' parts of the pool must be there"
    tiny.train(single, 6)
    whole = tiny.trainer()
    tiny.train(whole, 6)
    assert difference(tiny.weights(whole), tiny.weights(single)) < 2e-2
