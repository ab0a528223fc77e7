"""The stage machine: when it switches, and what each stage means for a training step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agit_core.config import LossConfig, StageConfig
from agit_core.networks import cancelled_biases
from agit_core.stages import HEALTH_KEYS, Stage, StageMachine, collapse, faint, hard_mask, mask_health
from agit_core.trainer import Trainer
from tests.agit_core import tiny


def first_masked_epoch(machine: StageMachine, epochs: int = 60) -> int | None:
    return next((e for e in range(epochs) if machine.advance(step=e, epoch=e)), None)


def test_attention_trains_for_exactly_30_epochs() -> None:
    """The seed's off by one: 29 attention epochs. Epochs 0 to 29 are stage full."""
    machine = StageMachine(StageConfig())
    stages = []
    for epoch in range(32):
        machine.advance(step=epoch, epoch=epoch)
        stages.append(machine.stage)
    assert stages == [Stage.FULL] * 30 + [Stage.MASKED] * 2


def test_switch_by_step() -> None:
    assert first_masked_epoch(StageMachine(StageConfig(switch_by="step", switch_at=7))) == 7


def test_switch_when_settled_and_at_the_latest_at_switch_at() -> None:
    config = StageConfig(switch_by="settled", switch_at=9, settled_tolerance=0.01, settled_epochs=2)
    machine = StageMachine(config)
    for epoch, coverage in enumerate([0.5, 0.4, 0.395, 0.392]):
        assert not machine.advance(step=epoch, epoch=epoch)
        machine.epoch_ended(coverage)
    assert machine.advance(step=4, epoch=4)
    restless = StageMachine(config)
    for epoch in range(9):
        assert not restless.advance(step=epoch, epoch=epoch)
        restless.epoch_ended(epoch * 0.1)
    assert restless.advance(step=9, epoch=9)


def test_never_and_always() -> None:
    never, always = (StageMachine(StageConfig(masking=m, switch_at=0)) for m in ("never", "always"))  # type: ignore[arg-type]
    assert first_masked_epoch(never) is None
    assert first_masked_epoch(always) is None
    assert never.stage is Stage.FULL
    assert always.rules.discriminator_sees_masked
    assert always.rules.attention_trains


def test_without_attention_there_is_nothing_to_mask() -> None:
    assert first_masked_epoch(StageMachine(StageConfig(switch_at=0), has_attention=False)) is None


def test_norms_go_or_stay() -> None:
    for choice, on in (("removed", False), ("kept", True)):
        machine = StageMachine(StageConfig(switch_at=0, norm_after_switch=choice))  # type: ignore[arg-type]
        assert machine.rules.discriminator_normalises
        machine.advance(0, 0)
        assert machine.rules.discriminator_normalises is on


def test_state_survives_a_checkpoint() -> None:
    machine = StageMachine(StageConfig(switch_by="settled"))
    machine.epoch_ended(0.3)
    machine.advance(5, 31)
    other = StageMachine(StageConfig(switch_by="settled"))
    other.load_state_dict(machine.state_dict())
    assert other.state_dict() == machine.state_dict()
    assert other.stage is Stage.MASKED


@pytest.mark.parametrize(("coverage", "says"), [(0.001, "all zeros"), (0.999, "all ones"), (0.4, None)])
def test_collapse_alarm(coverage: float, says: str | None) -> None:
    assert collapse({"coverage": coverage}) == says


def test_opacity_is_the_attention_where_the_discriminator_looks() -> None:
    """First image: half of it at 0.9, the rest just below tau; second: nowhere looked at."""
    masks = torch.full((2, 1, 4, 4), 0.09)
    masks[0, :, :2] = 0.9
    health = dict(zip(HEALTH_KEYS, mask_health(masks, tau=0.1).tolist(), strict=True))
    assert health["opacity"] == pytest.approx((0.9 + 0.0) / 2)
    assert health["above_tau"] == pytest.approx(0.25)
    assert faint(0.3)
    assert not faint(health["opacity"])


def parts(of: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k: v for k, v in of.items() if k.startswith(prefix)}


def test_attention_moves_before_the_switch_and_not_one_bit_after() -> None:
    trainer = tiny.trainer()
    nets = trainer.networks
    start, before, at_switch = tiny.weights(trainer), tiny.weights(trainer), {}
    moments: dict[str, Tensor] = {}
    switched = None
    for result in trainer.run(tiny.loader(trainer.plan)):
        if result.switched:
            switched, at_switch = result.step - 1, before
        if switched is None:
            before, moments = tiny.weights(trainer), attention_moments(trainer)
    # 7 items an epoch, 2 a step: step 4 is the first whose first item belongs to epoch 1
    assert switched == 4
    end = tiny.weights(trainer)
    names = {p: n for n, p in nets.named_parameters()}
    for name, net in (("attention_a", nets.attention_a), ("attention_b", nets.attention_b)):
        assert net is not None
        idle = {names[p] for p in cancelled_biases(net)}
        moved = {k for k in parts(start, name) if not torch.equal(start[k], at_switch[k])}
        assert moved == parts(start, name).keys() - idle, f"{name} must train in stage full"
        assert tiny.same(parts(at_switch, name), parts(end, name)), f"{name} must be frozen after"
    assert tiny.same(moments, attention_moments(trainer)), "not even Adam's moments and step counts may move"
    assert moments
    for name in ("generator_ab", "generator_ba"):
        assert not tiny.same(parts(at_switch, name), parts(end, name))
    for name in ("discriminator_a", "discriminator_b"):
        assert not tiny.same(parts(at_switch, f"{name}.conv"), parts(end, f"{name}.conv"))
        assert tiny.same(parts(at_switch, f"{name}.norms"), parts(end, f"{name}.norms"))


def attention_moments(trainer: Trainer) -> dict[str, Tensor]:
    state = trainer.training_step.optimizer_g.state
    return {
        f"{name}.{key}": value.clone()
        for name, parameter in trainer.networks.named_parameters()
        if name.startswith("attention")
        for key, value in state[parameter].items()
    }


@pytest.mark.parametrize("source", ["blend", "raw"])
def test_the_discriminator_sees_exactly_the_masked_images(source: str) -> None:
    """Real images by the attention of the real image, fakes by the attention of their source."""
    config = tiny.method(switch_at=0, fake_source=source, tau=0.5)
    config = replace(config, history=replace(config.history, size=0))
    trainer = tiny.trainer(config)
    nets, batch = trainer.networks, tiny.next_batch(trainer)
    seen: dict[str, list[Tensor]] = {"a": [], "b": []}
    for domain, net in (("a", nets.discriminator_a), ("b", nets.discriminator_b)):
        net.register_forward_pre_hook(lambda _, args, d=domain: seen[d].append(args[0].detach().clone()))
    with torch.no_grad():
        mask_a, mask_b = nets.attention_a(batch.a), nets.attention_b(batch.b)  # type: ignore[misc]
        raw_b, raw_a = nets.generator_ab(batch.a), nets.generator_ba(batch.b)
    blend_b, blend_a = mask_a * raw_b + (1 - mask_a) * batch.a, mask_b * raw_a + (1 - mask_b) * batch.b
    fake_a, fake_b = (blend_a, blend_b) if source == "blend" else (raw_a, raw_b)
    assert trainer.train_on(batch).stage is Stage.MASKED
    expected = {
        "a": (hard_mask(batch.a, mask_a, 0.5), hard_mask(fake_a, mask_b, 0.5)),
        "b": (hard_mask(batch.b, mask_b, 0.5), hard_mask(fake_b, mask_a, 0.5)),
    }
    for domain, (real, fake) in expected.items():
        in_generator_step, in_own_step = seen[domain]
        assert torch.allclose(in_generator_step, fake, atol=1e-6)
        assert torch.allclose(in_own_step, torch.cat([real, fake]), atol=1e-6)
        assert 0 < (in_own_step == 0).float().mean() < 1, "the mask must hide something and show something"


def test_four_generator_passes_and_two_more_only_for_identity() -> None:
    for weight, passes in ((0.0, 4), (0.5, 6)):
        trainer = tiny.trainer(replace(tiny.method(), losses=LossConfig(identity_weight=weight)))
        calls: list[int] = []
        for net in (trainer.networks.generator_ab, trainer.networks.generator_ba):
            net.register_forward_hook(lambda *_, c=calls: c.append(1))
        result = trainer.train_on(tiny.next_batch(trainer))
        assert len(calls) == passes
        assert (result.figures[4] > 0) == (weight > 0)


def test_the_window_reports_losses_and_mask_health() -> None:
    trainer = tiny.trainer()
    tiny.train(trainer, 3)
    figures = trainer.window()
    assert figures.steps == 3
    assert figures.losses["cycle_a"] > 0
    assert set(figures.mask_health) == {f"{k}_{d}" for k in HEALTH_KEYS for d in "ab"}
    assert 0 < figures.mask_health["coverage_a"] < 1
    assert trainer.window().steps == 0, "a window starts anew"
