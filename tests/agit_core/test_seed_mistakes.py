"""The nine mistakes of the seed's implementation (section 3 of the reference), a test for each.

Each test fails when its mistake is put back; that was tried by hand, mistake by mistake. The second half of the ninth
needs two processes and is in test_data_parallel.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agit_core.augment import augment
from agit_core.checkpoint import read_networks
from agit_core.config import HistoryConfig, LossConfig, MethodConfig
from agit_core.networks import Networks, cancelled_biases
from agit_core.preview import strips
from agit_core.stages import Stage
from agit_core.trainer import Trainer
from agit_core.translation import translate
from pipeline.config import load
from tests.agit_core import ranks, tiny

NAMES = ("generator_ab", "generator_ba", "attention_a", "attention_b", "discriminator_a", "discriminator_b")


def shown(net: nn.Module) -> list[Tensor]:
    """A list that grows by what a network is shown."""
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    return seen


def without_history(config: MethodConfig) -> MethodConfig:
    return replace(config, history=HistoryConfig(size=0))


def test_1_attention_parameters_are_in_no_optimiser() -> None:
    """The seed built its optimisers from generators and discriminators alone: attention never trained."""
    trainer = tiny.trainer()
    nets = trainer.networks
    known = {id(p) for g in trainer.training_step.optimizer_g.param_groups for p in g["params"]}
    before = tiny.weights(trainer)
    trainer.train_on(tiny.next_batch(trainer))
    after = tiny.weights(trainer)
    for name in NAMES[:4]:
        net = getattr(nets, name)
        assert all(id(p) in known for p in net.parameters())
        idle = {id(p) for p in cancelled_biases(net)}
        for key, parameter in net.named_parameters():
            moved = not torch.equal(before[f"{name}.{key}"], after[f"{name}.{key}"])
            assert moved == (id(parameter) not in idle)


@pytest.mark.parametrize("masking", ["staged", "always"])
@pytest.mark.parametrize("source", ["blend", "raw"])
def test_2_masked_mode_crashes(masking: str, source: str) -> None:
    """The seed masked a tensor in place that autograd still needed: the first masked step raised."""
    trainer = tiny.trainer(tiny.method(masking=masking, switch_at=0, fake_source=source))
    before = tiny.weights(trainer)
    tiny.train(trainer, 3)
    assert trainer.stages.stage is Stage.MASKED
    after = tiny.weights(trainer)
    assert not tiny.same(before, after)
    assert all(torch.isfinite(w).all() for w in after.values())


def test_3_the_history_pools_answer_is_thrown_away() -> None:
    """The seed asked its pool and then judged the new fake all the same."""
    config = replace(tiny.method(masking="never"), history=HistoryConfig(size=2, probability=1.0))
    trainer = tiny.trainer(config)
    seen_a, seen_b = (shown(n) for n in (trainer.networks.discriminator_a, trainer.networks.discriminator_b))
    tiny.train(trainer, 3)
    for seen in (seen_a, seen_b):
        # a step shows D its new fakes, then the real images with the pool's; each slot's pool holds one entry
        new, pooled = seen[0::2], [both.chunk(2)[1] for both in seen[1::2]]
        assert torch.equal(pooled[2], new[1])
        assert not torch.equal(pooled[2], new[2])


def test_4_real_images_are_never_masked_and_masks_are_soft() -> None:
    """In the seed D saw whole real images beside fakes times a soft mask, and no stage began or ended."""
    trainer = tiny.trainer(without_history(tiny.method(switch_at=1, tau=0.5)))
    seen = shown(trainer.networks.discriminator_a)
    for result in trainer.run(tiny.loader(trainer.plan)):
        if result.switched:
            break
        assert not (seen[-1] == 0).any(), "before the switch D sees whole images"
    batch = tiny.next_batch(trainer)
    attention = trainer.networks.attention_a
    assert attention is not None
    with torch.no_grad():
        mask = attention(batch.a)
    trainer.train_on(batch)
    real = seen[-1].chunk(2)[0]
    kept = (real != 0).any(1, keepdim=True)
    assert torch.equal(kept, mask >= 0.5)
    assert torch.equal(real, batch.a * kept), "pixels are shown unchanged or not at all"
    assert 0 < kept.float().mean() < 1


def test_5_attention_trains_for_29_epochs() -> None:
    """Off by one: the seed froze attention before epoch 29 (0-based). Epochs 0 to 29 are 30."""
    config = MethodConfig(networks=tiny.method().networks)
    assert config.stages.switch_at == 30
    trainer = Trainer(config, tiny.plan(7), tiny.SIZE, total_steps=40)
    # a batch is an epoch; these steps need not train to be counted
    trainer.training_step.__class__ = type("Idle", (type(trainer.training_step),), {"__call__": _no_step})
    epochs = {Stage.FULL: 0, Stage.MASKED: 0}
    for result in trainer.run(tiny.loader(trainer.plan)):
        epochs[result.stage] += 1
        trains = next(trainer.networks.attention_a.parameters()).requires_grad  # type: ignore[union-attr]
        assert trains == (result.epoch <= 29)
        assert result.switched == (result.epoch == 30)
    assert epochs == {Stage.FULL: 30, Stage.MASKED: 10}


def _no_step(self: Any, *_: Any) -> Tensor:
    from agit_core.step import FIGURES

    return torch.zeros(len(FIGURES))


@pytest.mark.parametrize("kind", ["lsgan", "vanilla"])
def test_6_the_loss_name_is_passed_as_a_boolean(kind: str) -> None:
    """``GANLoss(use_lsgan=name)``: any name is true, so the seed always used the squared error."""
    config = without_history(replace(tiny.method(), losses=LossConfig(adversarial=kind)))  # type: ignore[arg-type]
    trainer = tiny.trainer(config)
    scores: list[Tensor] = []
    trainer.networks.discriminator_b.register_forward_hook(lambda *args: scores.append(args[2].detach()))
    trainer.train_on(tiny.next_batch(trainer))
    losses = trainer.window().losses
    judged, (real, fake) = scores[0], scores[1].chunk(2)
    if kind == "lsgan":
        generator = (judged - 1).square().mean()
        critic = ((real - 1).square().mean() + fake.square().mean()) / 2
    else:
        generator = -judged.sigmoid().log().mean()
        critic = -(real.sigmoid().log().mean() + (1 - fake.sigmoid()).log().mean()) / 2
    assert losses["generator_ab"] == pytest.approx(float(generator), rel=1e-4)
    assert losses["discriminator_b"] == pytest.approx(float(critic), rel=1e-4)


def test_7_attention_is_never_saved_and_one_of_four_nets_restored(tmp_path: Path) -> None:
    """The seed saved no attention, loaded one generator of what it had saved, and inference raised."""
    trainer = tiny.trainer()
    tiny.train(trainer, 2)
    trainer.save(tmp_path / "c")
    other = tiny.trainer()
    assert not tiny.same(tiny.weights(other), tiny.weights(trainer))
    other.load(tmp_path / "c")
    assert tiny.same(tiny.weights(other), tiny.weights(trainer))
    _, saved = read_networks(tmp_path / "c")
    assert {key.split(".")[0] for key in saved} == set(NAMES)
    fresh = Networks(trainer.config.networks)
    fresh.load_state_dict(saved)
    images = tiny.next_batch(trainer).a
    with torch.no_grad():
        one = translate(images, trainer.networks.generator_ab, trainer.networks.attention_a)
        two = translate(images, fresh.generator_ab, fresh.attention_a)
    assert torch.equal(one.output, two.output)
    assert torch.equal(strips(fresh, images, "b2a"), strips(trainer.networks, images, "b2a"))


class TestMistake8:
    """``RandomCrop(H, W)`` took W as its padding, flags parsed as true, and each epoch had the same order."""

    def test_8_crops_are_padded(self) -> None:
        picture = torch.arange(1, 1 + 3 * 14 * 13).reshape(3, 14, 13)
        windows = {
            tuple(picture[:, y : y + 8, x : x + 8].flatten().tolist()): (y, x)
            for y in range(7)
            for x in range(6)
        }
        crops = [augment(picture, 8, f"key {i}", flip=False) for i in range(400)]
        found = {windows[tuple(c.flatten().tolist())] for c in crops}
        assert found == set(windows.values()), "every window of the image and nothing beyond its edge"

    @pytest.mark.parametrize(("text", "value"), [("false", False), ("no", False), ("true", True)])
    def test_8_boolean_flags_parse_as_true(self, text: str, value: bool) -> None:
        assert load("demo", [f"method.flip={text}"]).method.flip is value

    def test_8_without_flip_nothing_is_flipped(self) -> None:
        picture = torch.arange(3 * 8 * 8).reshape(3, 8, 8)
        straight = [torch.equal(augment(picture, 8, f"key {i}", flip=False), picture) for i in range(50)]
        flipped = [
            torch.equal(augment(picture, 8, f"key {i}", flip=True), picture.flip(-1)) for i in range(50)
        ]
        assert all(straight)
        assert 10 < sum(flipped) < 40

    def test_8_the_samplers_epoch_is_never_set(self) -> None:
        plan = tiny.plan(7)
        orders = [tuple(i.index for i in plan.items(epoch, "a", range(7))) for epoch in range(6)]
        assert all(sorted(order) == list(range(7)) for order in orders)
        assert len(set(orders)) == 6
        keys = [{i.key for i in plan.items(epoch, "a", range(7))} for epoch in range(6)]
        assert len(set.union(*keys)) == 42, "each epoch crops and flips anew"


def test_9_the_generators_step_leaves_the_discriminators_alone() -> None:
    """Toggled ``requires_grad`` was left to chance: gradients of the generators' loss reached D."""
    trainer = tiny.trainer()
    step, nets = trainer.training_step, trainer.networks
    critics = (nets.discriminator_a, nets.discriminator_b)
    after_generators: list[dict[str, Tensor]] = []
    real = step.optimizer_g.step

    def spy() -> None:
        after_generators.append({n: g for n, g in ranks.gradients(trainer).items() if "discriminator" in n})
        real()

    step.optimizer_g.step = spy  # type: ignore[method-assign,assignment]
    trainer.train_on(tiny.next_batch(trainer))
    first = {n: g for n, g in ranks.gradients(trainer).items() if "discriminator" in n}
    assert after_generators[0] == {}
    trainer.train_on(tiny.next_batch(trainer))
    assert tiny.same(after_generators[1], first), "only D's own loss may touch D's gradients"
    for net in critics:
        idle = {id(p) for p in cancelled_biases(net)}
        assert all(p.requires_grad == (id(p) not in idle) for p in net.parameters())
