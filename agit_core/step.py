"""One training step: four generator passes, generators and attention first, then the discriminators."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from agit_core import losses
from agit_core.config import MethodConfig
from agit_core.coverage import CoverageController
from agit_core.history import History
from agit_core.loader import Batch
from agit_core.networks import DISCRIMINATOR_NAMES, Networks, cancelled_biases
from agit_core.optimizers import build_optimizers
from agit_core.precision import Numerics
from agit_core.stages import HEALTH_KEYS, Rules, mask_health, shown_to_discriminator
from agit_core.translation import Translation, translate
from agit_core.world import World

LOSS_KEYS = (
    "generator_ab",
    "generator_ba",
    "cycle_a",
    "cycle_b",
    "identity_a",
    "identity_b",
    "discriminator_a",
    "discriminator_b",
)
FIGURES = (*LOSS_KEYS, *(f"{key}_{domain}" for domain in "ab" for key in HEALTH_KEYS))
"""Names of the values that a step returns as one float32 tensor, in this order; one tensor, so no synchronisation."""

GENERATOR_NAMES = ("generator_ab", "generator_ba")
ATTENTION_NAMES = ("attention_a", "attention_b")
_RECOMPILE_LIMIT = 64  # per code object, of which all generators share one


class TrainingStep:
    """Networks, optimisers and image pools, with the training step as a call.

    A rank's loss is scaled by ``n * W / B`` (n items on the rank, W ranks, global batch B), which makes DDP's mean
    over ranks equal to the mean over the global batch at any world size.
    """

    def __init__(
        self,
        config: MethodConfig,
        networks: Networks,
        histories: tuple[History, History],
        numerics: Numerics,
        device: torch.device,
        world: World,
        batch_size: int,
    ) -> None:
        self.config = config
        self.networks = networks.to(device).to(memory_format=numerics.memory_format)
        self.history_a, self.history_b = histories
        self.numerics = numerics
        self.device = device
        self.world = world
        self.batch_size = batch_size
        self.coverage = CoverageController(config.coverage, device)
        self.optimizer_g, self.optimizer_d = build_optimizers(networks, config.optimizer, fused=True)
        self._calls: dict[str, Callable[..., Any]] = {}
        self.rules: Rules | None = None

    def enter(self, rules: Rules) -> None:
        """Freeze what the stage does not train and wrap each trained network in a separate DDP.

        DDP fixes the set of parameters that it synchronises when it is built. The wrappers are therefore rebuilt at
        the stage switch, when attention and the discriminators' norms stop receiving gradients.
        """
        self.rules = rules
        modules = {n: m for n, m in self.networks.named_children() if isinstance(m, nn.Module)}
        for name, module in modules.items():
            module.requires_grad_(rules.attention_trains or name not in ATTENTION_NAMES)
            if name in DISCRIMINATOR_NAMES:
                module.norms.requires_grad_(rules.discriminator_normalises)  # type: ignore[union-attr,operator]
            for bias in cancelled_biases(module, rules.discriminator_normalises):
                bias.requires_grad_(False)
            if self.numerics.compile and module._compiled_call_impl is None:
                # generators and attention share one code object's limit, which a second run in the same process
                # would exceed and then silently run uncompiled
                from torch._dynamo import config as dynamo  # imported late: slow, and only needed here

                dynamo.recompile_limit = max(dynamo.recompile_limit, _RECOMPILE_LIMIT)
                module.compile(dynamic=False)
        self._calls = {name: self._wrap(module) for name, module in modules.items()}
        # drop the gradients of newly frozen parameters, or the optimiser would apply them again
        self.networks.zero_grad(set_to_none=True)

    def _wrap(self, module: nn.Module) -> Callable[..., Any]:
        if self.world.size == 1 or not any(p.requires_grad for p in module.parameters()):
            return module
        ids = [self.device] if self.device.type == "cuda" else None
        # not static_graph: it gives wrong gradients for D, whose requires_grad toggles; there are no buffers
        with warnings.catch_warnings():
            # newer versions of PyTorch rename ``broadcast_buffers``; 2.11 has only the old name
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = DistributedDataParallel(
                module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        _order_gradients(wrapped)
        return wrapped

    def __call__(self, batch: Batch, progress: float = 0.0) -> Tensor:
        """Update every trained parameter once; return :data:`FIGURES` as a float32 tensor on the device.

        ``progress``: share of the training done, in [0, 1].
        """
        rules, config = self.rules, self.config
        assert rules is not None, "enter() a stage first"
        move = {"device": self.device, "memory_format": self.numerics.memory_format, "non_blocking": True}
        a, b = batch.a.to(**move), batch.b.to(**move)  # type: ignore[call-overload]
        scale = len(a) * self.world.size / self.batch_size
        g_ab, g_ba = (self._calls[n] for n in GENERATOR_NAMES)
        att_a, att_b = (self._calls.get(n) for n in ATTENTION_NAMES)
        d_a, d_b = (self._calls[n] for n in DISCRIMINATOR_NAMES)
        kind, tau = config.losses.adversarial, config.stages.tau
        # only while attention is frozen: raw fakes would leave it without a gradient from the adversarial loss
        masked = rules.discriminator_sees_masked and not rules.attention_trains
        raw = config.stages.fake_source == "raw" and masked

        def fake(translation: Translation) -> Tensor:
            return translation.raw if raw else translation.output

        # generators and attention (Eq 1, 3 and 5), with the discriminators frozen
        with self._autocast():
            to_b = translate(a, g_ab, att_a)
            to_a = translate(b, g_ba, att_b)
            back_a = translate(to_b.output, g_ba, att_b)
            back_b = translate(to_a.output, g_ab, att_a)
            fake_b = shown_to_discriminator(fake(to_b), to_b.mask, rules, tau)
            fake_a = shown_to_discriminator(fake(to_a), to_a.mask, rules, tau)
            with frozen(self.networks.discriminator_a, self.networks.discriminator_b):
                norm = rules.discriminator_normalises
                scores_b = self.networks.discriminator_b(fake_b, normalise=norm)
                scores_a = self.networks.discriminator_a(fake_a, normalise=norm)
            identity_a, identity_b = self._identity(g_ab, g_ba, a, b)
        gan_ab = losses.adversarial(scores_b.float(), True, kind)
        gan_ba = losses.adversarial(scores_a.float(), True, kind)
        cycle_a = losses.cycle_consistency(back_a.output.float(), a)
        cycle_b = losses.cycle_consistency(back_b.output.float(), b)
        weight = config.losses.cycle_weight
        total = gan_ab + gan_ba + weight * (cycle_a + cycle_b)
        total = total + weight * config.losses.identity_weight * (identity_a + identity_b)
        if rules.attention_trains:
            total = total + self._mask_losses(to_b.mask, to_a.mask, progress)
        self.optimizer_g.zero_grad(set_to_none=True)
        (total * scale).backward()
        self.optimizer_g.step()

        # discriminators: reals and pooled fakes in one batch, which instance norm allows (statistics are per image);
        # a real image is masked by its own attention, i.e. that of its translation
        with torch.no_grad():
            pool_b, mask_b = self.history_b.exchange(batch.step, fake(to_b).detach(), to_b.mask.detach())
            pool_a, mask_a = self.history_a.exchange(batch.step, fake(to_a).detach(), to_a.mask.detach())
            pair_a = torch.cat([a, pool_a.to(a.dtype)]), torch.cat([to_b.mask, mask_a.to(to_b.mask.dtype)])
            pair_b = torch.cat([b, pool_b.to(b.dtype)]), torch.cat([to_a.mask, mask_b.to(to_a.mask.dtype)])
            input_a, input_b = (shown_to_discriminator(x, m, rules, tau) for x, m in (pair_a, pair_b))
        with self._autocast():
            real_scores_a, fake_scores_a = d_a(input_a, normalise=norm).float().chunk(2)
            real_scores_b, fake_scores_b = d_b(input_b, normalise=norm).float().chunk(2)
        loss_a = losses.discriminator(real_scores_a, fake_scores_a, kind)
        loss_b = losses.discriminator(real_scores_b, fake_scores_b, kind)
        self.optimizer_d.zero_grad(set_to_none=True)
        ((loss_a + loss_b) * scale).backward()
        self.optimizer_d.step()

        figures = [gan_ab, gan_ba, cycle_a, cycle_b, identity_a, identity_b, loss_a, loss_b]
        health = [mask_health(to_b.mask, tau), mask_health(to_a.mask, tau)]
        return torch.cat([torch.stack([f.detach().float() for f in figures]), *health])

    def _mask_losses(self, mask_a: Tensor, mask_b: Tensor, progress: float) -> Tensor | float:
        """Losses of the masks alone: the coverage controller's and binarity."""
        loss: Tensor | float = 0.0
        if self.coverage.active:
            loss = loss + self.coverage(mask_a, mask_b, self.batch_size, self.world)
        weight = self.config.losses.binarity_weight * losses.binarity_ramp(progress)
        if weight:
            loss = loss + weight * (losses.binarity(mask_a) + losses.binarity(mask_b)) / 2
        return loss

    def _identity(
        self, g_ab: Callable[..., Tensor], g_ba: Callable[..., Tensor], a: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not self.config.losses.identity_weight:
            zero = torch.zeros((), device=self.device)
            return zero, zero
        return losses.identity(g_ba(a).float(), a), losses.identity(g_ab(b).float(), b)

    def _autocast(self) -> torch.autocast:
        dtype = self.numerics.autocast
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def _order_gradients(wrapped: DistributedDataParallel) -> None:
    """Make DDP rebuild its gradient buckets now, by a backward pass of zeros, instead of after the first real step.

    With three or more ranks, a gradient's position in its bucket decides the order of summation. DDP rebuilds the
    buckets after its first backward pass, so a resumed run's first step would otherwise differ in the last bits.
    """
    wrapped.reducer.prepare_for_backward([])
    torch.stack([(p * 0).sum() for p in wrapped.parameters() if p.requires_grad]).sum().backward()


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Disable gradients for the modules' trainable parameters inside the context."""
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
