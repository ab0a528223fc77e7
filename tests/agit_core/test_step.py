"""The training step against formulas written out a second time, with every option of the paper-or-code kind."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from agit_core.config import HistoryConfig, LossConfig, MethodConfig, OptimizerConfig
from agit_core.errors import BadInput
from agit_core.networks import Networks, cancelled_biases
from agit_core.stages import collapse
from tests.agit_core import tiny
from tests.agit_core.ranks import difference, gradients
from tests.benchmarks.plain_step import PlainStep, as_published


def options(
    losses: dict[str, Any] | None = None, networks: dict[str, Any] | None = None, **stages: Any
) -> MethodConfig:
    config = tiny.method(**{"switch_at": 9, **stages})
    return replace(
        config,
        losses=replace(LossConfig(), **(losses or {})),
        networks=replace(config.networks, **(networks or {})),
    )


MASKED = {"switch_at": 0, "tau": 0.5}
CASES = {
    "the authors' code, stage full": options(),
    "the authors' code, stage masked": options(**MASKED),
    "the paper's raw fake": options(**MASKED, fake_source="raw"),
    "the paper's raw fake, stage full": options(fake_source="raw"),
    "logarithmic loss": options({"adversarial": "vanilla"}),
    "norm kept": options(**MASKED, norm_after_switch="kept"),
    "identity loss": options({"identity_weight": 0.5, "cycle_weight": 7.0}),
    "decoder 3x3": options(networks={"attention_decoder": "3x3"}),
    "resize upsampling": options(networks={"upsampling": "resize"}),
    "masks always": options(masking="always", tau=0.5),
    "masks never": options(masking="never", switch_at=0),
    "no attention": options(networks={"attention": False}, switch_at=0),
    "uaggan": options(networks={"preset": "uaggan"}, **MASKED),
    "cyclegan": options({"identity_weight": 0.5}, {"preset": "cyclegan"}, switch_at=0),
}


def formulas(nets: Networks, a: Tensor, b: Tensor, config: MethodConfig, masked: bool) -> dict[str, Tensor]:
    """Eq 1 to 7 with the weights of ``nets``: every loss, and the two sums that are descended."""
    one = torch.ones(len(a), 1, *a.shape[2:])
    attend_a, attend_b = nets.attention_a or (lambda _: one), nets.attention_b or (lambda _: one)
    normalise = not masked or config.stages.norm_after_switch == "kept"

    def mask(image: Tensor, m: Tensor) -> Tensor:
        return torch.where(m < config.stages.tau, torch.zeros_like(image), image) if masked else image

    def score(net: torch.nn.Module, image: Tensor) -> Tensor:
        return net(image, normalise=normalise)

    def good(s: Tensor) -> Tensor:
        return ((s - 1) ** 2).mean() if lsgan else -torch.log(torch.sigmoid(s)).mean()

    def bad(s: Tensor) -> Tensor:
        return (s**2).mean() if lsgan else -torch.log(1 - torch.sigmoid(s)).mean()

    lsgan = config.losses.adversarial == "lsgan"
    m_a, m_b = attend_a(a), attend_b(b)
    raw_b, raw_a = nets.generator_ab(a), nets.generator_ba(b)
    b1, a1 = m_a * raw_b + (1 - m_a) * a, m_b * raw_a + (1 - m_b) * b
    m_b1, m_a1 = attend_b(b1), attend_a(a1)
    a2, b2 = m_b1 * nets.generator_ba(b1) + (1 - m_b1) * b1, m_a1 * nets.generator_ab(a1) + (1 - m_a1) * a1
    fake_b, fake_a = (raw_b, raw_a) if config.stages.fake_source == "raw" and masked else (b1, a1)
    if masked and not config.networks.has_attention:
        raise AssertionError("nothing masks without attention")
    fake_b, fake_a = mask(fake_b, m_a.detach()), mask(fake_a, m_b.detach())
    real_a, real_b = mask(a, m_a.detach()), mask(b, m_b.detach())
    d_a, d_b = nets.discriminator_a, nets.discriminator_b
    losses = {
        "generator_ab": good(score(d_b, fake_b)),
        "generator_ba": good(score(d_a, fake_a)),
        "cycle_a": (a2 - a).abs().mean(),
        "cycle_b": (b2 - b).abs().mean(),
        "identity_a": (nets.generator_ba(a) - a).abs().mean(),
        "identity_b": (nets.generator_ab(b) - b).abs().mean(),
        "discriminator_a": (good(score(d_a, real_a)) + bad(score(d_a, fake_a.detach()))) / 2,
        "discriminator_b": (good(score(d_b, real_b)) + bad(score(d_b, fake_b.detach()))) / 2,
    }
    cycle, identity = config.losses.cycle_weight, config.losses.identity_weight
    losses["generators"] = losses["generator_ab"] + losses["generator_ba"]
    losses["generators"] = losses["generators"] + cycle * (losses["cycle_a"] + losses["cycle_b"])
    losses["generators"] = losses["generators"] + cycle * identity * (
        losses["identity_a"] + losses["identity_b"]
    )
    losses["discriminators"] = losses["discriminator_a"] + losses["discriminator_b"]
    return losses


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_the_formulas(case: str) -> None:
    config = CASES[case]
    trainer = tiny.trainer(config)
    nets, batch = copy.deepcopy(trainer.networks).requires_grad_(True), tiny.next_batch(trainer)
    result = trainer.train_on(batch)
    masked = result.stage.value == "masked"
    expected = formulas(nets, batch.a, batch.b, config, masked)
    got = trainer.window().losses
    for name, value in got.items():
        skipped = name.startswith("identity") and not config.losses.identity_weight
        assert value == pytest.approx(0.0 if skipped else expected[name].item(), rel=1e-4), name

    parameters = dict(nets.named_parameters())
    found = gradients(trainer)
    for side, total in (("discriminator", "discriminators"), ("", "generators")):
        mine = {n: p for n, p in parameters.items() if n.startswith("discriminator") == bool(side)}
        grads = torch.autograd.grad(expected[total], list(mine.values()), allow_unused=True)
        theirs = {n: g for n, g in zip(mine, grads, strict=True) if g is not None and n in found}
        assert theirs.keys() == {n for n in found if n in mine}
        assert difference(theirs, {n: found[n] for n in theirs}) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_what_each_option_trains(case: str) -> None:
    """Exactly the trained parameters have gradients, and every one of those moves."""
    config = CASES[case]
    trainer = tiny.trainer(config)
    before = tiny.weights(trainer)
    trainer.train_on(tiny.next_batch(trainer))
    rules = trainer.stages.rules
    nets = trainer.networks
    expected = {n for n, _ in nets.named_parameters()}
    if not rules.attention_trains:
        expected -= {n for n in expected if n.startswith("attention")}
    if not rules.discriminator_normalises:
        expected -= {n for n in expected if ".norms." in n}
    idle = {p for m in nets.children() for p in cancelled_biases(m, rules.discriminator_normalises)}
    expected -= {n for n, p in nets.named_parameters() if p in idle}
    assert gradients(trainer).keys() == expected
    after = tiny.weights(trainer)
    assert {n for n in after if not torch.equal(before[n], after[n])} == expected


PORT = replace(
    options(networks={"preset": "uaggan"}),
    history=HistoryConfig(size=0),
    optimizer=OptimizerConfig(learning_rate=2e-3, attention_learning_rate=0.0),
)


@pytest.mark.parametrize(
    ("config", "masked"),
    [
        (options(switch_at=9), False),
        (options(switch_at=0), True),
        (CASES["cyclegan"], False),
        (PORT, False),
    ],
    ids=["full", "masked", "cyclegan", "uaggan"],
)
def test_the_benchmarks_plain_step_does_the_same_work(config: MethodConfig, masked: bool) -> None:
    """What `make bench` compares with is this method: the same losses and weights, step after step."""
    trainer = tiny.trainer(config)
    plain = PlainStep(trainer.networks, trainer.config, masked)
    for _ in range(2):
        batch = tiny.next_batch(trainer)
        expected = plain(batch.a, batch.b)
        trainer.train_on(batch)
        got = trainer.window().losses
        assert {n: got[n] for n in expected} == pytest.approx(expected, rel=1e-4)
    nets = trainer.networks
    normalise = trainer.stages.rules.discriminator_normalises
    idle = {p for m in nets.children() for p in cancelled_biases(m, normalise)}
    names = {n for n, p in nets.named_parameters() if p not in idle}
    ours, theirs = tiny.weights(trainer), plain.nets.state_dict()
    assert difference({n: ours[n] for n in names}, {n: theirs[n] for n in names}) < 1e-4


def test_the_benchmarks_plain_step_stays_on_its_device() -> None:
    networks = tiny.trainer().networks.to("meta")
    assert {p.device.type for p in as_published(networks).parameters()} == {"meta"}


def test_biases_that_a_norm_cancels_change_nothing() -> None:
    nets = tiny.trainer().networks
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    for net in nets.children():
        before = net(image)
        for bias in cancelled_biases(net):
            torch.nn.init.normal_(bias)
        assert torch.allclose(net(image), before, atol=1e-4)
    d = nets.discriminator_a
    assert cancelled_biases(d)
    assert not cancelled_biases(d, normalise=False)
    assert not torch.allclose(d(image), d(image, normalise=False), atol=1e-2)


def test_an_old_fake_is_hidden_by_the_mask_it_was_made_with() -> None:
    config = replace(options(**MASKED), history=HistoryConfig(size=2, probability=1.0))
    trainer = tiny.trainer(config)
    seen: list[Tensor] = []
    net = trainer.networks.discriminator_b
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    for _ in range(3):
        trainer.train_on(tiny.next_batch(trainer))
    # a step shows D its new fakes, then real and pooled ones; each slot's pool holds one entry
    new = seen[0::2]
    pooled = [both.chunk(2)[1] for both in seen[1::2]]
    assert torch.equal(pooled[0], new[0])
    assert torch.equal(pooled[1], new[0])
    assert torch.equal(pooled[2], new[1])
    assert not torch.equal(new[0] == 0, new[1] == 0), "the masks must differ for this to say anything"


def test_the_rates_fall_in_both_optimisers_and_attention_keeps_its_ratio() -> None:
    config = tiny.method(switch_at=99)
    rates = replace(config.optimizer, learning_rate=1e-3, attention_learning_rate=1e-4, constant_fraction=0.5)
    trainer = tiny.trainer(replace(config, optimizer=rates), total=8)
    step = trainer.training_step
    seen = []
    for _ in trainer.run(tiny.loader(trainer.plan)):
        seen.append([g["lr"] for o in (step.optimizer_g, step.optimizer_d) for g in o.param_groups])
        assert trainer.learning_rate == seen[-1][0]
    for factor, (generators, attention, discriminators) in zip(
        [1, 1, 1, 1, 1, 0.75, 0.5, 0.25], seen, strict=True
    ):
        assert generators == discriminators == pytest.approx(1e-3 * factor)
        assert attention == pytest.approx(1e-4 * factor)
    assert trainer.step == 8


def test_an_attention_rate_of_0_moves_nothing() -> None:
    config = tiny.method(switch_at=99)
    trainer = tiny.trainer(replace(config, optimizer=replace(config.optimizer, attention_learning_rate=0.0)))
    before = copy.deepcopy(trainer.networks.attention_a.state_dict())
    next(iter(trainer.run(tiny.loader(trainer.plan))))
    assert all(torch.equal(before[n], v) for n, v in trainer.networks.attention_a.state_dict().items())
    with pytest.raises(BadInput, match="attention_learning_rate"):
        replace(config, optimizer=replace(config.optimizer, attention_learning_rate=-1.0))


@pytest.mark.parametrize(("bias", "says"), [(-20.0, "all zeros"), (20.0, "all ones"), (0.0, None)])
def test_a_collapsed_mask_shows_in_the_window(bias: float, says: str | None) -> None:
    trainer = tiny.trainer()
    attention = trainer.networks.attention_a
    assert attention is not None
    last = [m for m in attention.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    torch.nn.init.constant_(last.bias, bias)  # type: ignore[arg-type]
    tiny.train(trainer, 2)
    health = trainer.window().mask_health
    domains = {d: collapse({k[:-2]: v for k, v in health.items() if k.endswith(d)}) for d in "ab"}
    assert domains == {"a": says, "b": None}
    if says is not None:
        assert health["bimodality_a"] == pytest.approx(1.0)
        assert health["spread_a"] == pytest.approx(0.0, abs=1e-4)


def test_masks_that_settle_switch_the_stage_at_an_epochs_end() -> None:
    """The trainer tells the machine each epoch's mean coverage of both domains."""
    config = tiny.method(switch_by="settled", switch_at=50, settled_epochs=1, settled_tolerance=1.0)
    trainer = tiny.trainer(config)
    coverages = []
    for result in trainer.run(tiny.loader(trainer.plan), 7):
        health = trainer.window().mask_health
        coverages.append((health["coverage_a"] + health["coverage_b"]) / 2)
        # 7 items an epoch, 2 a step: epochs end before steps 4 and 7
        assert result.switched is False
    seen = trainer.stages.state_dict()["coverages"]
    assert seen == pytest.approx([sum(coverages[:4]) / 4])
    [(epoch, figures)] = trainer.ended_epochs()
    assert (epoch, figures.steps) == (0, 4)
    assert sum(figures.mask_health[f"coverage_{d}"] for d in "ab") / 2 == pytest.approx(seen[0])
    assert trainer.ended_epochs() == []
    result = trainer.train_on(tiny.next_batch(trainer))
    assert result.switched
    assert trainer.stages.switched_at_step == 7


def test_the_step_keeps_no_graph() -> None:
    """Held graph tensors are the peers' memory leak: what a step returns must not need gradients."""
    trainer = tiny.trainer()
    result = trainer.train_on(tiny.next_batch(trainer))
    assert not result.figures.requires_grad
    pools = [
        *trainer.training_step.history_a.state().values(),
        *trainer.training_step.history_b.state().values(),
    ]
    assert not any(p.requires_grad for p in pools)


def test_the_last_epoch_is_told_of_also_where_it_is_cut_short() -> None:
    trainer = tiny.trainer(total=6)
    assert sum(1 for _ in trainer.run(tiny.loader(trainer.plan))) == 6
    assert [(epoch, figures.steps) for epoch, figures in trainer.ended_epochs()] == [(0, 4), (1, 2)]
