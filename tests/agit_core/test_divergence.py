"""Losses or weights that are not finite: noticed, never stored, never translated with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from agit_core import Translator, model_folder
from agit_core.config import MethodConfig
from agit_core.errors import BadInput, Diverged
from agit_core.loader import Batch
from agit_core.trainer import Trainer
from tests.agit_core import tiny


def method(autocast: Literal["off", "bf16"] = "off") -> MethodConfig:
    config = tiny.method()
    return replace(
        config,
        optimizer=replace(config.optimizer, average_decay=0.9),
        precision=replace(config.precision, autocast=autocast),
    )


def poisoned(batch: Batch) -> Batch:
    """One pixel of one image is not a number."""
    batch.a[0, 0, 0, 0] = torch.nan
    return batch


def diverge(trainer: Trainer, at: int) -> None:
    """Trains up to and including 0-based step ``at``, whose batch is poisoned."""
    tiny.train(trainer, at)
    trainer.window()
    trainer.train_on(poisoned(tiny.next_batch(trainer)))


@pytest.mark.parametrize("autocast", ["off", "bf16"])
@pytest.mark.parametrize("at", [0, 6])
def test_noticed_at_the_window_and_before_a_checkpoint(
    at: int, autocast: Literal["off", "bf16"], tmp_path: Path
) -> None:
    """In the first step and in the masked stage, whose attention is frozen."""
    trainer = tiny.trainer(method(autocast))
    diverge(trainer, at)
    window = trainer.window()
    assert not window.finite
    with pytest.raises(
        Diverged, match=f"losses of steps {at + 1} to {at + 1} are not finite; lower .*learning_rate"
    ):
        trainer.check_losses(window)
    with pytest.raises(Diverged, match=f"weights after step {at + 1} are not finite"):
        trainer.save(tmp_path / "checkpoint")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["weights", "average", "moments"])
def test_whatever_a_run_would_go_on_from_is_looked_at(part: str) -> None:
    trainer = tiny.trainer(method())
    tiny.train(trainer, 2)
    assert trainer.snapshot() is not None
    weight = next(trainer.networks.discriminator_b.parameters())
    moment = trainer.training_step.optimizer_d.state[weight]["exp_avg_sq"]
    broken = {"weights": weight.data, "average": next(iter(trainer.averaged.values())), "moments": moment}
    broken[part].view(-1)[-1] = torch.inf
    with pytest.raises(Diverged):
        trainer.snapshot()


def test_each_rollback_halves_the_rates_and_is_kept_in_checkpoints(tmp_path: Path) -> None:
    """Going back in a process equals going on from that checkpoint in another one, bit for bit."""
    first = tiny.trainer(method())
    tiny.train(first, 2)
    usual = first.learning_rate
    first.rollbacks = 2
    tiny.train(first, 3)
    assert first.learning_rate == usual / 4
    first.save(tmp_path / "checkpoint")
    second = tiny.trainer(method())
    second.load(tmp_path / "checkpoint")
    assert second.rollbacks == 2
    for trainer in (first, second):
        tiny.train(trainer, 6)
    assert tiny.same(tiny.everything(first), tiny.everything(second))


def test_a_checkpoint_of_an_earlier_version_never_went_back() -> None:
    trainer = tiny.trainer(method())
    snapshot = trainer.snapshot()
    assert snapshot is not None
    del snapshot.training["rollbacks"]
    trainer.rollbacks = 1
    trainer.restore(snapshot)
    assert trainer.rollbacks == 0


def test_a_model_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    """As earlier versions stored them."""
    trainer = tiny.trainer(method())
    weights = tiny.weights(trainer)
    next(iter(weights.values())).view(-1)[0] = torch.nan
    model_folder.write(tmp_path, "broken", trainer.config, tiny.SIZE, weights)
    with pytest.raises(
        BadInput, match=r"are not finite \(generator_ab\..* use an earlier checkpoint or version"
    ):
        Translator.load(tmp_path)
