"""One training step: four generator passes, generators and attention first, then the discriminators."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

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


class Passes(NamedTuple):
    """Images (N, 3, S, S) in [-1, 1] and what the generators made of them, with gradients: for a loss of your own."""

    a: Tensor
    b: Tensor
    to_b: Translation
    to_a: Translation
    back_a: Translation
    """The reconstruction of ``a`` from ``to_b.output``."""
    back_b: Translation


class TrainingStep:
    """Networks, optimisers and image pools, with the training step as a call.

    A rank's loss is scaled by ``n * W / B`` (n items on the rank, W ranks, global batch B), which makes DDP's mean
    over ranks equal to the mean over the global batch at any world size.

    Args:
        microbatch: images per domain in one forward pass; gradients are accumulated over such parts of the rank's
            batch, which takes less memory and gives the same update. None: the rank's whole batch.
        extra_loss: scalar mean over the images, added to the loss of generators and attention.
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
        microbatch: int | None = None,
        extra_loss: Callable[[Passes], Tensor] | None = None,
    ) -> None:
        self.config = config
        self.microbatch = microbatch
        self.extra_loss = extra_loss
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
        move = {"device": self.device, "memory_format": self.numerics.memory_format, "non_blocking": True}
        a, b = batch.a.to(**move), batch.b.to(**move)  # type: ignore[call-overload]
        scale = len(a) * self.world.size / self.batch_size
        parts = list(zip(a.split(self.microbatch or len(a)), b.split(self.microbatch or len(b)), strict=True))
        shares = [len(part) / len(a) for part, _ in parts]

        # on all ranks or none: it is collective, as is DDP's first forward pass
        in_parts = -(-self.batch_size // self.world.size) > (self.microbatch or self.batch_size)
        slope = self._coverage_ahead(parts, shares) if in_parts else None
        # generators and attention (Eq 1, 3 and 5), with the discriminators frozen
        self.optimizer_g.zero_grad(set_to_none=True)
        found: list[Tensor] = []
        fakes = []
        for share, (part_a, part_b) in zip(shares, parts, strict=True):
            with self._summing(len(found) < len(parts) - 1, GENERATOR_NAMES + ATTENTION_NAMES):
                total, figures, fake = self._generators(part_a, part_b, progress, slope)
                with record_function("generator backward"):
                    (total * (scale * share)).backward()
            found.append(figures)
            fakes.append(fake)
        with record_function("optimizer"):
            self.optimizer_g.step()
        figures_g = _mean(found, shares)
        fake_a, mask_b, fake_b, mask_a = (_joined(kind) for kind in zip(*fakes, strict=True))

        # discriminators: reals and pooled fakes in one batch, which instance norm allows (statistics are per image);
        # a real image is masked by its own attention, i.e. that of its translation
        old_b, old_mask_b = self.history_b.exchange(batch.step, fake_b, mask_a)
        old_a, old_mask_a = self.history_a.exchange(batch.step, fake_a, mask_b)
        size = self.microbatch or len(a)
        seen = zip(
            *(x.split(size) for x in (a, mask_a, old_a, old_mask_a, b, mask_b, old_b, old_mask_b)),
            strict=True,
        )
        self.optimizer_d.zero_grad(set_to_none=True)
        found = []
        for share, shown in zip(shares, seen, strict=True):
            with self._summing(len(found) < len(parts) - 1, DISCRIMINATOR_NAMES):
                with record_function("discriminator"):
                    loss_a = self._discriminator("discriminator_a", *shown[:4])
                    loss_b = self._discriminator("discriminator_b", *shown[4:])
                with record_function("discriminator backward"):
                    ((loss_a + loss_b) * (scale * share)).backward()
            found.append(torch.stack([loss_a.detach(), loss_b.detach()]))
        with record_function("optimizer"):
            self.optimizer_d.step()

        health = [mask_health(mask, self.config.stages.tau) for mask in (mask_a, mask_b)]
        return torch.cat([figures_g, _mean(found, shares), *health])

    def _generators(
        self, a: Tensor, b: Tensor, progress: float, slope: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Loss of generators and attention on some images (mean), its terms, and the fakes.

        Returns:
            scalar loss; the first six of :data:`LOSS_KEYS`; and, detached, the discriminators' fakes: of A, the
            attention in B, of B, the attention in A.
        """
        rules, config = self._rules(), self.config
        g_ab, g_ba = (self._calls[n] for n in GENERATOR_NAMES)
        att_a, att_b = (self._calls.get(n) for n in ATTENTION_NAMES)
        kind, tau = config.losses.adversarial, config.stages.tau
        # only while attention is frozen: raw fakes would leave it without a gradient from the adversarial loss
        masked = rules.discriminator_sees_masked and not rules.attention_trains
        raw = config.stages.fake_source == "raw" and masked

        def fake(translation: Translation) -> Tensor:
            return translation.raw if raw else translation.output

        with self._autocast():
            with record_function("translate"):
                to_b = translate(a, g_ab, att_a)
                to_a = translate(b, g_ba, att_b)
            with record_function("cycle"):
                back_a = translate(to_b.output, g_ba, att_b)
                back_b = translate(to_a.output, g_ab, att_a)
            fake_b = shown_to_discriminator(fake(to_b), to_b.mask, rules, tau)
            fake_a = shown_to_discriminator(fake(to_a), to_a.mask, rules, tau)
            frozen_here = frozen(self.networks.discriminator_a, self.networks.discriminator_b)
            with record_function("adversarial"), frozen_here:
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
            total = total + self._mask_losses(to_b.mask, to_a.mask, progress, slope)
        if self.extra_loss is not None:
            total = total + self.extra_loss(Passes(a, b, to_b, to_a, back_a, back_b))
        figures = [gan_ab, gan_ba, cycle_a, cycle_b, identity_a, identity_b]
        fakes = (fake(to_a).detach(), to_a.mask.detach(), fake(to_b).detach(), to_b.mask.detach())
        return total, torch.stack([f.detach().float() for f in figures]), fakes

    @torch.no_grad()
    def _shown(self, real: Tensor, mask: Tensor, fake: Tensor, fake_mask: Tensor) -> Tensor:
        """Real images and fakes in one batch (2 n, 3, S, S), masked in stage ``masked``."""
        images = torch.cat([real, fake.to(real.dtype)])
        masks = torch.cat([mask, fake_mask.to(mask.dtype)])
        return shown_to_discriminator(images, masks, self._rules(), self.config.stages.tau)

    def _discriminator(self, name: str, *shown: Tensor) -> Tensor:
        """Loss of a discriminator on real images and fakes (see :meth:`_shown`), scalar mean."""
        seen = self._shown(*shown)
        with self._autocast():
            judged = self._calls[name](seen, normalise=self._rules().discriminator_normalises)
        real, false = judged.float().chunk(2)
        return losses.discriminator(real, false, self.config.losses.adversarial)

    def _rules(self) -> Rules:
        assert self.rules is not None, "enter() a stage first"
        return self.rules

    @contextmanager
    def _summing(self, more: bool, names: tuple[str, ...]) -> Iterator[None]:
        """Accumulate gradients of these networks on this rank while more parts of the batch follow."""
        with ExitStack() as stack:
            for name in names if more else ():
                if isinstance(call := self._calls.get(name), DistributedDataParallel):
                    stack.enter_context(call.no_sync())
            yield

    @torch.no_grad()
    def _coverage_ahead(self, parts: list[tuple[Tensor, Tensor]], shares: list[float]) -> Tensor | None:
        """Advance the coverage controller by the whole batch before its first part is trained on; None: off."""
        if not self.coverage.active or not self._rules().attention_trains:
            return None
        networks = self.networks.attention_a, self.networks.attention_b
        with self._autocast():
            means = [
                torch.stack(
                    [net(x).float().mean() for net, x in zip(networks, part, strict=True) if net is not None]
                )
                for part in parts
            ]
        items = len(parts[0][0]) / shares[0]
        return self.coverage.advance(_mean(means, shares).double() * (items / self.batch_size), self.world)

    def _mask_losses(
        self, mask_a: Tensor, mask_b: Tensor, progress: float, slope: Tensor | None
    ) -> Tensor | float:
        """Losses of the masks alone: the coverage controller's and binarity."""
        loss: Tensor | float = 0.0
        if slope is not None:
            loss = loss + self.coverage.loss(slope, mask_a, mask_b)
        elif self.coverage.active:
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


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _mean(parts: list[Tensor], shares: list[float]) -> Tensor:
    """Mean over a batch from the means over its parts."""
    if len(parts) == 1:
        return parts[0]
    return torch.stack([part * share for part, share in zip(parts, shares, strict=True)]).sum(0)


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
