"""Controller that keeps the mean attention of each domain within a band.

Early in training the cycle loss dominates and pulls every mask down uniformly, because a smaller mask always
reconstructs better. A fixed penalty on the area, as in GANimation (Pumarola et al. 2018) and AttentionGAN (Tang et
al. 2019), is unstable: masks end at 0 with one weight and at 1 with a slightly different one. Here the weight lambda
is adapted at every step, per domain, from the coverage c, the mean of the masks of a global batch::

    cov    <- 0.9 cov + 0.1 c
    e       = max(cov - high, 0) - max(low - cov, 0)
    lambda <- clip((0.99 lambda if e = 0 else lambda) + 0.05 e, -5, 5)
    loss   += lambda c + 5 (max(c - high, 0)^2 + max(low - c, 0)^2)

A negative lambda rewards coverage. The controller sets how much is covered; the other losses decide where.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from agit_core.config import CoverageConfig
from agit_core.world import World

_MEMORY = 0.9  # decay of the moving average of c
_LEAK = 0.99  # decay of lambda inside the band
_RATE = 0.05  # integral gain: change of lambda per unit of error
_LIMIT = 5.0  # largest |lambda|
_SPRING = 5.0  # weight of the quadratic term


class CoverageController:
    """Controllers of both domains, [a, b], with their state on the training device: no host synchronisation."""

    def __init__(self, config: CoverageConfig, device: torch.device) -> None:
        bands = (config.band_a, config.band_b)
        self.active = any(band is not None for band in bands)
        # a domain without a band gets [0, 1], which the mean of a mask never leaves
        low, high = zip(*(band or (0.0, 1.0) for band in bands), strict=True)
        self.low = torch.tensor(low, dtype=torch.float64, device=device)
        self.high = torch.tensor(high, dtype=torch.float64, device=device)
        self.coverage = (self.low + self.high) / 2
        self.weight = torch.zeros_like(self.coverage)

    def __call__(self, mask_a: Tensor, mask_b: Tensor, batch_size: int, world: World) -> Tensor:
        """Advance the controllers by one step and return their loss on this rank's items, scalar. Collective.

        Args:
            mask_a, mask_b: attention of this rank's images of each domain, (n, 1, H, W) in [0, 1].
            batch_size: images per domain of the global batch.
        """
        here = torch.stack([mask_a.float().mean(), mask_b.float().mean()])
        slope = self.advance(here.detach().double() * (len(mask_a) / batch_size), world)
        return self.loss(slope, mask_a, mask_b)

    def advance(self, covered: Tensor, world: World) -> Tensor:
        """Advances the controllers by one step and gives the weight of c, [a, b]. Collective.

        The loss is linear in the masks and has the gradient of the formula at the coverage of the global batch: the
        weight of c is lambda + 10 (max(c - high, 0) - max(low - c, 0)).

        Args:
            covered: this rank's part of the global batch's coverage of each domain, float64, [a, b].
        """
        if world.size > 1:
            dist.all_reduce(covered)
        self.coverage = _MEMORY * self.coverage + (1 - _MEMORY) * covered
        error = self._outside(self.coverage)
        kept = torch.where(error == 0, _LEAK * self.weight, self.weight)
        self.weight = (kept + _RATE * error).clamp(-_LIMIT, _LIMIT)
        return self.weight + 2 * _SPRING * self._outside(covered)

    @staticmethod
    def loss(slope: Tensor, mask_a: Tensor, mask_b: Tensor) -> Tensor:
        """The loss on some images' masks, scalar, with the weights that :meth:`advance` gave."""
        here = torch.stack([mask_a.float().mean(), mask_b.float().mean()])
        return (slope.to(here.dtype) * here).sum()

    def _outside(self, coverage: Tensor) -> Tensor:
        """Signed distance of each coverage from its band: positive above, negative below, 0 inside."""
        return (coverage - self.high).clamp(min=0) - (self.low - coverage).clamp(min=0)

    def state_dict(self) -> dict[str, Tensor]:
        """Controller state; empty when the controller is off, as in checkpoints of earlier versions."""
        return {"coverage": self.coverage, "lambda": self.weight} if self.active else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if self.active:
            self.coverage = state["coverage"].to(self.coverage.device)
            self.weight = state["lambda"].to(self.weight.device)
