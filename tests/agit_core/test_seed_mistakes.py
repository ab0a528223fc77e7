"""What the seed's implementation gets wrong; each of its nine mistakes would fail one of these tests.

Some are tested where their subject is: off by one at the switch (5) in ``test_stages``, resume and saving (7)
in ``test_resume``, data parallelism (9) in ``test_data_parallel``.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from agit_core.checkpoint import read_networks
from agit_core.config import HistoryConfig, LossConfig, StageConfig
from agit_core.networks import Networks
from agit_core.stages import Stage
from tests.agit_core import tiny


def test_1_attention_is_in_an_optimiser() -> None:
    trainer = tiny.trainer()
    known = {id(p) for g in trainer.training_step.optimizer_g.param_groups for p in g["params"]}
    nets = trainer.networks
    for net in (nets.attention_a, nets.attention_b, nets.generator_ab, nets.generator_ba):
        assert net is not None
        assert all(id(p) in known for p in net.parameters())


@pytest.mark.parametrize("masking", ["staged", "always", "never"])
def test_2_masked_mode_trains(masking: str) -> None:
    trainer = tiny.trainer(tiny.method(masking=masking, switch_at=0))
    before = tiny.weights(trainer)
    tiny.train(trainer, 3)
    assert trainer.stages.stage is (Stage.FULL if masking == "never" else Stage.MASKED)
    assert not tiny.same(before, tiny.weights(trainer))
    assert all(torch.isfinite(w).all() for w in tiny.weights(trainer).values())


def test_3_the_discriminator_gets_what_the_history_answers() -> None:
    config = replace(tiny.method(masking="never"), history=HistoryConfig(size=2, probability=1.0))
    trainer = tiny.trainer(config)
    seen, fakes = [], []
    trainer.networks.discriminator_b.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach().clone())
    )
    for _ in range(3):
        trainer.train_on(tiny.next_batch(trainer))
        fakes.append(seen[-2])
    # two slots with one entry each; from step 1 on the discriminator is shown the fake of the step before
    assert torch.equal(seen[-1][2:], fakes[-2])
    assert not torch.equal(seen[-1][2:], fakes[-1])


def test_4_the_threshold_is_hard_and_there_is_a_switch() -> None:
    assert StageConfig().tau == 0.1
    assert StageConfig().masking == "staged"
    trainer = tiny.trainer(tiny.method(switch_at=0, tau=0.5))
    seen: list[torch.Tensor] = []
    trainer.networks.discriminator_a.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach().clone())
    )
    batch = tiny.next_batch(trainer)
    trainer.train_on(batch)
    real = seen[-1][: len(batch.a)]
    kept = (real != 0).any(1, keepdim=True)
    assert torch.equal(real, batch.a * kept), "pixels are shown unchanged or not at all"


def test_6_the_configured_loss_is_the_one_that_trains() -> None:
    figures = {}
    for kind in ("lsgan", "vanilla"):
        trainer = tiny.trainer(replace(tiny.method(), losses=LossConfig(adversarial=kind)))  # type: ignore[arg-type]
        figures[kind] = trainer.train_on(tiny.next_batch(trainer)).figures[0].item()
    assert figures["lsgan"] != pytest.approx(figures["vanilla"], rel=0.05)


def test_7_all_networks_are_saved_and_loaded(tmp_path: object) -> None:
    from pathlib import Path

    trainer = tiny.trainer()
    tiny.train(trainer, 2)
    folder = Path(str(tmp_path)) / "c"
    trainer.save(folder)
    _, weights = read_networks(folder)
    assert tiny.same(weights, tiny.weights(trainer))
    Networks(trainer.config.networks).load_state_dict(weights)
    heads = {k.split(".")[0] for k in weights}
    assert heads == {f"{n}" for n in ("generator_ab", "generator_ba", "attention_a", "attention_b")} | {
        "discriminator_a",
        "discriminator_b",
    }


def test_8_each_epoch_is_shuffled_and_cropped_anew() -> None:
    plan = tiny.plan(7)
    first, second = list(tiny.loader(plan).batches(0, range(7), 2))
    keys = [[item.key for item in plan.items(step, "a", range(7))] for step in (0, 1)]
    assert sorted(i.index for i in plan.items(1, "a", range(7))) == list(range(7))
    assert not set(keys[0]) & set(keys[1])
    assert not torch.equal(first.a, second.a)


def test_9_the_generator_step_leaves_the_discriminators_alone() -> None:
    trainer = tiny.trainer()
    step, batch = trainer.training_step, tiny.next_batch(trainer)
    gradients: list[bool] = []
    real = step.optimizer_g.step

    def spy() -> None:
        for net in (trainer.networks.discriminator_a, trainer.networks.discriminator_b):
            gradients.extend(p.grad is not None for p in net.parameters())
        real()

    step.optimizer_g.step = spy  # type: ignore[method-assign,assignment]
    trainer.train_on(batch)
    assert gradients
    assert not any(gradients)
    nets = (trainer.networks.discriminator_a, trainer.networks.discriminator_b)
    assert all(p.requires_grad for net in nets for p in net.parameters())
