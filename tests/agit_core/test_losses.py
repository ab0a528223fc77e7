"""Each loss and Eq 1 against formulas written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from agit_core import losses
from agit_core.stages import Rules, Stage, hard_mask, mask_health, shown_to_discriminator
from agit_core.translation import translate
from tests.agit_core import tiny


def test_lsgan() -> None:
    scores = torch.tensor([[0.5, 2.0], [-1.0, 0.0]])
    assert losses.adversarial(scores, True, "lsgan").item() == pytest.approx((0.25 + 1 + 4 + 1) / 4)
    assert losses.adversarial(scores, False, "lsgan").item() == pytest.approx((0.25 + 4 + 1 + 0) / 4)


def test_vanilla_is_the_logarithmic_loss() -> None:
    scores = torch.tensor([0.3, -1.2])
    real = -sum(math.log(1 / (1 + math.exp(-s))) for s in (0.3, -1.2)) / 2
    fake = -sum(math.log(1 - 1 / (1 + math.exp(-s))) for s in (0.3, -1.2)) / 2
    assert losses.adversarial(scores, True, "vanilla").item() == pytest.approx(real, rel=1e-5)
    assert losses.adversarial(scores, False, "vanilla").item() == pytest.approx(fake, rel=1e-5)


def test_the_kind_of_loss_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="unknown adversarial loss"):
        losses.adversarial(torch.zeros(1), True, "wgan")


def test_discriminator_is_half_the_sum() -> None:
    real, fake = torch.tensor([0.8]), torch.tensor([0.4])
    assert losses.discriminator(real, fake, "lsgan").item() == pytest.approx(0.5 * (0.04 + 0.16))


def test_cycle_consistency_is_the_mean_absolute_difference() -> None:
    a = torch.tensor([[[[0.0, 1.0], [-1.0, 0.5]]]])
    back = torch.tensor([[[[0.5, 1.0], [-0.5, -0.5]]]])
    assert losses.cycle_consistency(back, a).item() == pytest.approx((0.5 + 0 + 0.5 + 1) / 4)


def test_equation_1_blends_by_the_mask() -> None:
    image = torch.full((1, 3, 2, 2), -0.5)
    mask = torch.tensor([[[[0.0, 1.0], [0.25, 0.5]]]])
    result = translate(image, lambda x: torch.ones_like(x), lambda x: mask)
    expected = mask * 1.0 + (1 - mask) * -0.5
    assert torch.allclose(result.output, expected.expand(1, 3, 2, 2))
    assert torch.equal(result.raw, torch.ones(1, 3, 2, 2))


def test_threshold_at_test_leaves_the_background_untouched() -> None:
    image = torch.rand(1, 3, 2, 2)
    # 0.25 stands exactly on the threshold, and is kept
    mask = torch.tensor([[[[0.05, 0.9], [0.25, 0.2499]]]])
    result = translate(image, lambda x: -torch.ones_like(x), lambda x: mask, threshold=0.25)
    assert torch.equal(result.output[..., 0, 0], image[..., 0, 0])
    assert torch.equal(result.output[..., 1, 1], image[..., 1, 1])
    assert torch.equal(result.mask, torch.tensor([[[[0.0, 0.9], [0.25, 0.0]]]]))


def test_no_attention_is_a_mask_of_ones() -> None:
    image = torch.rand(2, 3, 4, 4)
    result = translate(image, lambda x: x.neg(), None)
    assert torch.equal(result.output, -image)
    assert torch.equal(result.mask, torch.ones(2, 1, 4, 4))


def test_hard_mask_keeps_pixels_from_tau_on_and_passes_no_gradient_to_the_mask() -> None:
    image = torch.rand(1, 3, 1, 3, requires_grad=True)
    mask = torch.tensor([[[[0.0999, 0.1, 0.9]]]], requires_grad=True)
    seen = hard_mask(image, mask, tau=0.1)
    assert torch.equal(seen, image * torch.tensor([0.0, 1.0, 1.0]))
    seen.sum().backward()
    assert mask.grad is None
    assert torch.equal(image.grad, torch.tensor([0.0, 1.0, 1.0]).expand(1, 3, 1, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("masked", [True, False])
def test_what_the_discriminator_is_shown(masked: bool) -> None:
    rules = Rules(Stage.MASKED if masked else Stage.FULL, masked, not masked, not masked)
    image, mask = torch.rand(1, 3, 2, 2), torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
    seen = shown_to_discriminator(image, mask, rules, 0.1)
    assert torch.equal(seen, image * mask if masked else image)


def test_mask_health() -> None:
    mask = torch.tensor([[[[0.0, 1.0]]], [[[0.5, 0.5]]]])
    coverage, above, bimodal, spread, opacity = mask_health(mask, tau=0.1).tolist()
    assert coverage == pytest.approx(0.5)
    assert above == pytest.approx(0.75)
    assert bimodal == pytest.approx(0.5)
    assert spread == pytest.approx(math.sqrt(0.5) / 2)
    assert opacity == pytest.approx((1.0 + 0.5) / 2)


def test_binarity_by_hand_and_its_ramp() -> None:
    mask = torch.tensor([[[[0.0, 1.0], [0.5, 0.25]]]])
    assert losses.binarity(mask).item() == pytest.approx((0 + 0 + 1 + 0.75) / 4)
    ramp = [losses.binarity_ramp(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert ramp == pytest.approx([0, 0, 0.5, 1, 1])


def test_binarity_enters_the_step_late_and_moves_attention_only() -> None:
    plain = tiny.method(switch_at=9)
    config = replace(plain, losses=replace(plain.losses, binarity_weight=0.5))
    gradients = {}
    for name, method, progress in (("off", plain, 1.0), ("early", config, 0.2), ("late", config, 1.0)):
        trainer = tiny.trainer(method)
        trainer.training_step(tiny.next_batch(trainer), progress)
        gradients[name] = {n: p.grad for n, p in trainer.networks.named_parameters() if p.grad is not None}
    assert tiny.same(gradients["off"], gradients["early"])
    moved = {n for n in gradients["off"] if not torch.equal(gradients["off"][n], gradients["late"][n])}
    assert moved
    assert all(n.startswith("attention") for n in moved)
