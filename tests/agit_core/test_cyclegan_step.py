"""The training of preset ``cyclegan`` against pytorch-CycleGAN's, written down with its own names and order.

Its ``CycleGANModel``: forward, generators with identity loss, discriminators one after the other on what the pool
gives back (the newest image, as long as it is not full), Adam for either side.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from agit_core.config import HistoryConfig, LossConfig, MethodConfig, NetworkConfig, OptimizerConfig
from agit_core.networks import Networks, cancelled_biases
from tests.agit_core import tiny
from tests.agit_core.ranks import difference
from tests.benchmarks.plain_step import as_published

LAMBDA, LAMBDA_IDENTITY = 10.0, 0.5


class CycleGANModel:
    """A is translated by ``netG_A`` and ``netD_A`` judges the result, which is an image of B."""

    def __init__(self, networks: Networks) -> None:
        nets = as_published(networks)
        self.nets = nets
        self.G_A, self.G_B = nets.generator_ab, nets.generator_ba
        self.D_A, self.D_B = nets.discriminator_b, nets.discriminator_a
        generators = itertools.chain(self.G_A.parameters(), self.G_B.parameters())
        critics = itertools.chain(self.D_A.parameters(), self.D_B.parameters())
        self.optimizer_G = torch.optim.Adam(generators, lr=0.0002, betas=(0.5, 0.999))
        self.optimizer_D = torch.optim.Adam(critics, lr=0.0002, betas=(0.5, 0.999))

    @staticmethod
    def gan(prediction: Tensor, target_is_real: bool) -> Tensor:
        target = torch.tensor(1.0 if target_is_real else 0.0).expand_as(prediction)
        return nn.MSELoss()(prediction, target)

    def backward_D(self, net: nn.Module, real: Tensor, fake: Tensor) -> float:
        loss = (self.gan(net(real), True) + self.gan(net(fake.detach()), False)) * 0.5
        loss.backward()
        return loss.item()

    def optimize_parameters(self, real_A: Tensor, real_B: Tensor) -> dict[str, float]:
        l1 = nn.L1Loss()
        fake_B, fake_A = self.G_A(real_A), self.G_B(real_B)
        rec_A, rec_B = self.G_B(fake_B), self.G_A(fake_A)
        for p in itertools.chain(self.D_A.parameters(), self.D_B.parameters()):
            p.requires_grad = False
        self.optimizer_G.zero_grad()
        idt_A, idt_B = l1(self.G_A(real_B), real_B), l1(self.G_B(real_A), real_A)
        loss_G_A, loss_G_B = self.gan(self.D_A(fake_B), True), self.gan(self.D_B(fake_A), True)
        cycle_A, cycle_B = l1(rec_A, real_A), l1(rec_B, real_B)
        identity = idt_A * LAMBDA * LAMBDA_IDENTITY + idt_B * LAMBDA * LAMBDA_IDENTITY
        (loss_G_A + loss_G_B + cycle_A * LAMBDA + cycle_B * LAMBDA + identity).backward()
        self.optimizer_G.step()
        for p in itertools.chain(self.D_A.parameters(), self.D_B.parameters()):
            p.requires_grad = True
        self.optimizer_D.zero_grad()
        loss_D_A = self.backward_D(self.D_A, real_B, fake_B)
        loss_D_B = self.backward_D(self.D_B, real_A, fake_A)
        self.optimizer_D.step()
        return {
            "generator_ab": loss_G_A.item(),
            "generator_ba": loss_G_B.item(),
            "cycle_a": cycle_A.item(),
            "cycle_b": cycle_B.item(),
            "identity_a": idt_B.item(),
            "identity_b": idt_A.item(),
            "discriminator_a": loss_D_B,
            "discriminator_b": loss_D_A,
        }


def test_a_training_of_preset_cyclegan_is_pytorch_cyclegans() -> None:
    small = NetworkConfig("cyclegan", generator_width=8, generator_blocks=1, discriminator_width=8)
    method = MethodConfig(
        networks=small,
        losses=LossConfig(identity_weight=LAMBDA_IDENTITY),
        history=HistoryConfig(size=50),
        optimizer=OptimizerConfig(learning_rate=2e-4),
        precision=tiny.REFERENCE,
    )
    trainer = tiny.trainer(method, batch_size=1)
    theirs = CycleGANModel(trainer.networks)
    start = tiny.weights(trainer)
    for _ in range(4):
        batch = tiny.next_batch(trainer)
        expected = theirs.optimize_parameters(batch.a, batch.b)
        trainer.train_on(batch)
        assert trainer.window().losses == pytest.approx(expected, rel=1e-4)
    # biases in front of a norm change no output, and are moved there by rounding alone
    idle = {p for net in trainer.networks.children() for p in cancelled_biases(net)}
    names = {name for name, p in trainer.networks.named_parameters() if p not in idle}
    ours, weights = tiny.weights(trainer), theirs.nets.state_dict()
    assert all(not torch.equal(ours[name], start[name]) for name in names)
    assert difference({n: ours[n] for n in names}, {n: weights[n] for n in names}) < 1e-4
