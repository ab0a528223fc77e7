"""The yardstick: the same training step as public implementations write it.

Eager, fp32, channels first; PyTorch's own layers in the published order; one discriminator pass for the real
images and one for the fakes; a backward per discriminator; ``torch.optim.Adam`` as it comes; losses read with
``.item()``. The discriminators are frozen in the generators' half, as the most used CycleGAN code does. It
computes what :class:`agit_core.step.TrainingStep` computes, for every preset, which a test holds both to.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor, nn

from agit_core.config import MethodConfig
from agit_core.layers import FromImage, InstanceNorm, ToImage, TransposedConvolution
from agit_core.networks import Networks


def as_published(networks: Networks) -> Networks:
    """A copy with the same weights, of PyTorch's own modules, in the order in which they were published."""
    device = next(networks.parameters()).device
    networks = copy.deepcopy(networks).requires_grad_(True)
    for parent in list(networks.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, InstanceNorm):
                norm = nn.InstanceNorm2d(child.channels, affine=child.weight is not None, device=device)
                norm.load_state_dict(child.state_dict())
                setattr(parent, name, norm)
            elif isinstance(child, TransposedConvolution):
                child.__class__ = nn.ConvTranspose2d
            elif isinstance(child, FromImage | ToImage):
                child.__class__ = nn.Conv2d
    for name in ("attention_a", "attention_b"):
        attention = getattr(networks, name)
        if attention is not None and any(isinstance(layer, nn.Identity) for layer in attention):
            layers = [nn.Upsample(scale_factor=2) if isinstance(m, nn.Identity) else m for m in attention]
            setattr(networks, name, nn.Sequential(*layers[:-1]))
    return networks


@contextlib.contextmanager
def as_on_gpus() -> Iterator[None]:
    """Our networks with PyTorch's own convolutions from and to images, as they run everywhere but on CPUs."""
    own = [mock.patch.object(layer, "forward", nn.Conv2d.forward) for layer in (FromImage, ToImage)]
    with own[0], own[1]:
        yield


class ImagePool:
    """Earlier fakes with their masks: the usual pool, image by image. Without room it hands back what it is given."""

    def __init__(self, size: int = 50) -> None:
        self.size = size
        self.entries: list[tuple[Tensor, Tensor]] = []

    def query(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        if not self.size:
            return images, masks
        answer = []
        for entry in zip(images, masks, strict=True):
            if len(self.entries) < self.size:
                self.entries.append(entry)
            elif random.random() < 0.5:
                place = random.randrange(self.size)
                entry, self.entries[place] = self.entries[place], entry
            answer.append(entry)
        return torch.stack([image for image, _ in answer]), torch.stack([mask for _, mask in answer])


class PlainStep:
    """Call it with a batch of each domain; it moves every trained parameter once."""

    def __init__(self, networks: Networks, config: MethodConfig, masked: bool) -> None:
        self.nets = as_published(networks)
        self.config, self.masked = config, masked
        nets, adam = self.nets, config.optimizer
        attention = [net for net in (nets.attention_a, nets.attention_b) if net is not None]
        if masked:
            for net in (*attention, nets.discriminator_a.norms, nets.discriminator_b.norms):
                net.requires_grad_(False)
        if masked or adam.attention_learning_rate == 0:
            attention = []  # the first port gives it to no optimiser, and computes its gradients all the same
        generators = [nets.generator_ab, nets.generator_ba, *attention]
        self.discriminators = [nets.discriminator_a, nets.discriminator_b]
        settings = {"lr": adam.learning_rate, "betas": (adam.beta1, adam.beta2)}
        self.optimizer_g = torch.optim.Adam(
            itertools.chain(*(n.parameters() for n in generators)),
            **settings,  # type: ignore[arg-type]
        )
        self.optimizer_d = torch.optim.Adam(
            [p for n in self.discriminators for p in n.parameters() if p.requires_grad],
            **settings,  # type: ignore[arg-type]
        )
        self.pool_a, self.pool_b = ImagePool(config.history.size), ImagePool(config.history.size)
        self.identity = config.losses.identity_weight
        self.mse, self.l1 = nn.MSELoss(), nn.L1Loss()

    def seen(self, image: Tensor, mask: Tensor) -> Tensor:
        return image * (mask.detach() >= self.config.stages.tau).float() if self.masked else image

    def judge(self, net: nn.Module, image: Tensor, real: bool) -> Tensor:
        scores = net(image, normalise=not self.masked)
        return self.mse(scores, torch.full_like(scores, float(real)))

    def translate(
        self, image: Tensor, generator: nn.Module, attention: nn.Module | None
    ) -> tuple[Tensor, Tensor]:
        """The translation and its mask; without attention the generator's output and ones."""
        if attention is None:
            return generator(image), torch.ones_like(image[:, :1])
        mask = attention(image)
        return mask * generator(image) + (1 - mask) * image, mask

    def __call__(self, a: Tensor, b: Tensor) -> dict[str, float]:
        nets, weight = self.nets, self.config.losses.cycle_weight
        fake_b, mask_a = self.translate(a, nets.generator_ab, nets.attention_a)
        fake_a, mask_b = self.translate(b, nets.generator_ba, nets.attention_b)
        back_a, _ = self.translate(fake_b, nets.generator_ba, nets.attention_b)
        back_b, _ = self.translate(fake_a, nets.generator_ab, nets.attention_a)

        trained = list(self.optimizer_d.param_groups[0]["params"])
        for p in trained:
            p.requires_grad_(False)
        self.optimizer_g.zero_grad()
        gan_ab = self.judge(nets.discriminator_b, self.seen(fake_b, mask_a), True)
        gan_ba = self.judge(nets.discriminator_a, self.seen(fake_a, mask_b), True)
        cycle_a, cycle_b = self.l1(back_a, a), self.l1(back_b, b)
        total = gan_ab + gan_ba + weight * cycle_a + weight * cycle_b
        if self.identity:
            same_a, same_b = self.l1(nets.generator_ba(a), a), self.l1(nets.generator_ab(b), b)
            total = total + weight * self.identity * (same_a + same_b)
        total.backward()
        self.optimizer_g.step()

        for p in trained:
            p.requires_grad_(True)
        self.optimizer_d.zero_grad()
        losses = {}
        for name, net, real, real_mask, pool, fake, fake_mask in (
            ("discriminator_a", nets.discriminator_a, a, mask_a, self.pool_a, fake_a, mask_b),
            ("discriminator_b", nets.discriminator_b, b, mask_b, self.pool_b, fake_b, mask_a),
        ):
            old, old_mask = pool.query(fake.detach(), fake_mask.detach())
            on_real = self.judge(net, self.seen(real, real_mask), True)
            on_fake = self.judge(net, self.seen(old, old_mask), False)
            loss = 0.5 * (on_real + on_fake)
            loss.backward()
            losses[name] = loss.item()
        self.optimizer_d.step()
        return losses | {
            "generator_ab": gan_ab.item(),
            "generator_ba": gan_ba.item(),
            "cycle_a": cycle_a.item(),
            "cycle_b": cycle_b.item(),
        }
