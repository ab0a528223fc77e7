"""Exact resume: training straight equals training, dying and going on, bit for bit."""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from agit_core.checkpoint import Snapshot
from agit_core.config import MethodConfig
from agit_core.errors import BadInput
from agit_core.trainer import MeanFigures, Trainer
from tests.agit_core import dying, tiny

LOSSES_THEN = (("generator", ("ab", "ba")), ("cycle", "ab"), ("identity", "ab"), ("discriminator", "ab"))
HEALTH_THEN = ("coverage", "above_tau", "bimodality", "spread", "opacity")


def with_average(channels_last: str = "off") -> MethodConfig:
    config = tiny.method()
    return replace(
        config,
        optimizer=replace(config.optimizer, average_decay=0.9),
        precision=replace(config.precision, channels_last=channels_last),
    )


@pytest.fixture(scope="module")
def straight() -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trainer = tiny.trainer(with_average())
    tiny.train(trainer)
    torch.set_num_threads(threads)
    return tiny.everything(trainer)


@pytest.mark.parametrize("at", [1, 3, 4, 5, 8])
def test_straight_equals_resumed(tmp_path: Path, straight: dict[str, Any], at: int) -> None:
    """In mid-epoch, one step before, at and after the switch (step 4), and where the rate begins to fall (8)."""
    first = tiny.trainer(with_average())
    tiny.train(first, at)
    first.save(tmp_path / "checkpoint")
    second = tiny.trainer(with_average())
    second.load(tmp_path / "checkpoint")
    assert second.step == at
    tiny.train(second)
    assert tiny.same(straight, tiny.everything(second))
    tiny.train(first)
    assert tiny.same(straight, tiny.everything(first)), "saving must not change the run that goes on"


@pytest.mark.parametrize("autocast", ["off", "bf16"])
def test_resume_is_exact_in_channels_last(autocast: Literal["off", "bf16"]) -> None:
    """Adam's moments must take the layout of their weights again: the fused kernel pairs them by address."""
    config = with_average("on")
    config = replace(config, precision=replace(config.precision, autocast=autocast))
    one = tiny.trainer(config)
    tiny.train(one, 2)
    snapshot = one.snapshot()
    assert snapshot is not None
    other = tiny.trainer(config)
    other.restore(snapshot)
    for trainer in (one, other):
        tiny.train(trainer, 5)
    assert tiny.same(tiny.everything(one), tiny.everything(other))


@pytest.mark.long
def test_a_process_killed_twice_goes_on_exactly(tmp_path: Path) -> None:
    """``kill -9`` in mid-epoch before the switch and after it; the work since the checkpoint is done again."""
    command = [sys.executable, "-m", "tests.agit_core.dying", str(tmp_path)]
    for die_at in (5, 8):
        died = subprocess.run([*command, str(die_at)], check=False)
        assert died.returncode == -signal.SIGKILL
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-003", "step-006"]
    subprocess.run(command, check=True)
    straight = tiny.trainer(dying.method())
    tiny.train(straight)
    assert straight.stages.switched_at_step == 7, "the masks settled before the latest epoch"
    end = torch.load(tmp_path / "end.pt", weights_only=True)
    assert tiny.same(tiny.weights(straight), end["weights"])
    assert tiny.same(straight.averaged, end["averaged"])


def test_killed_while_writing_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """A forked process replaces one checkpoint over and over until it is killed at any moment."""
    trainer = tiny.trainer(with_average())
    folder = tmp_path / "checkpoint"
    trainer.save(folder)
    left: set[int] = set()
    # twelve kills, and more of them, later, on a machine so busy that no child got to write
    for attempt in range(60):
        if attempt >= 12 and len(left) > 1:
            break
        child = os.fork()
        if child == 0:
            while True:
                trainer.step += 1
                trainer.save(folder)
        time.sleep(random.Random(attempt).uniform(0.01, 0.25 * max(1, attempt - 10)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        reader = tiny.trainer(with_average())
        reader.load(folder)
        left.add(reader.step)
    assert len(left) > 1, "the children must have been writing"


def _resumed(snapshot: Snapshot) -> tuple[Trainer, list[tuple[int, MeanFigures]]]:
    """A run resumed in the middle of epoch 0 and trained beyond the end of that, with the epochs that ended."""
    trainer = tiny.trainer(with_average())
    # the run takes the snapshot's tensors over
    trainer.restore(copy.deepcopy(snapshot))
    tiny.train(trainer, 5)
    return trainer, trainer.ended_epochs()


def _in_mid_epoch() -> Snapshot:
    trainer = tiny.trainer(with_average())
    tiny.train(trainer, 2)
    snapshot = trainer.snapshot()
    assert snapshot is not None
    return snapshot


def test_a_checkpoint_whose_running_figures_have_no_names_resumes_exactly() -> None:
    """As versions wrote them that stored one vector: the sums in a fixed order, then the number of items."""
    snapshot = _in_mid_epoch()
    named = snapshot.training["epoch_figures"]
    order = [f"{loss}_{way}" for loss, ways in LOSSES_THEN for way in ways]
    order += [f"{key}_{domain}" for domain in "ab" for key in HEALTH_THEN]
    sums = [named[name][0] for name in order]
    then = {**snapshot.training, "epoch_figures": torch.tensor([*sums, 4.0], dtype=torch.float64)}
    old, ended = _resumed(replace(snapshot, training=then))
    new, ended_now = _resumed(snapshot)
    assert tiny.same(tiny.everything(old), tiny.everything(new))
    assert [epoch for epoch, _ in ended] == [0]
    assert ended == ended_now


def test_a_figure_more_or_less_never_makes_a_run_unresumable() -> None:
    snapshot = _in_mid_epoch()
    _, [(_, before)] = _resumed(snapshot)
    stored = dict(snapshot.training["epoch_figures"])
    del stored["opacity_b"]
    stored["forgotten"] = [1.0, 4.0]
    _, [(_, after)] = _resumed(replace(snapshot, training={**snapshot.training, "epoch_figures": stored}))
    assert (after.losses, after.steps) == (before.losses, before.steps)
    differ = {name for name, value in after.mask_health.items() if value != before.mask_health[name]}
    assert differ == {"opacity_b"}, "the new figure alone is the mean over the rest of the epoch"
    assert 0 < after.mask_health["opacity_b"] <= 1


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    saved = tmp_path / "checkpoint"
    tiny.trainer().save(saved)
    with pytest.raises(BadInput, match="batch_size"):
        tiny.trainer(batch_size=4).load(saved)
    with pytest.raises(BadInput, match="total_steps"):
        tiny.trainer(total=99).load(saved)
    windowed = tiny.trainer()
    windowed.plan = replace(windowed.plan, block=2, window=4)
    with pytest.raises(BadInput, match="shuffle_window"):
        windowed.load(saved)
    with pytest.raises(BadInput, match="another method"):
        tiny.trainer(tiny.method(tau=0.3)).load(saved)
    other_numerics = replace(tiny.method(), precision=replace(tiny.method().precision, channels_last="on"))
    tiny.trainer(other_numerics).load(saved)


def test_a_run_can_start_from_earlier_weights(tmp_path: Path) -> None:
    earlier = tiny.trainer()
    tiny.train(earlier, 2)
    run = tiny.trainer(with_average())
    run.start_from(tiny.weights(earlier))
    assert tiny.same(tiny.weights(run), tiny.weights(earlier))
    assert all(torch.equal(v, run.networks.state_dict()[k]) for k, v in run.averaged.items())
    assert run.step == 0
    tiny.train(run, 1)


def test_the_random_state_is_the_seeds_not_the_process() -> None:
    """PyTorch seeds itself anew in every process; two runs of one seed must still hold the same state."""
    states = []
    for _ in range(2):
        torch.seed()
        snapshot = tiny.trainer(tiny.method()).snapshot()
        assert snapshot is not None
        states.append(snapshot.training["torch_random_state"])
    assert torch.equal(*states)
