"""The two training stages: what the discriminators see, what is trained, which norms are on.

Stage ``full``: the discriminators judge whole images; generators, attention and discriminators train.
Stage ``masked``: they judge ``x * 1[mask >= tau]`` (Eq 6), without inner instance norms; attention is frozen.
The second stage exists because a discriminator that sees the background pushes the generator to change it, and the
attention map then drifts to all ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from agit_core.config import StageConfig


class Stage(StrEnum):
    """Training stage, named after the images that the discriminators see."""

    FULL = "full"
    MASKED = "masked"


@dataclass(frozen=True)
class Rules:
    """Effect of a stage on a training step."""

    stage: Stage
    discriminator_sees_masked: bool
    attention_trains: bool
    discriminator_normalises: bool

    def describe(self) -> str:
        """One-line description for the log."""
        sees = "masked images" if self.discriminator_sees_masked else "whole images"
        trains = (
            "generators, attention, discriminators" if self.attention_trains else "generators, discriminators"
        )
        norms = "on" if self.discriminator_normalises else "off"
        return f"stage {self.stage.value}: D sees {sees}; trained: {trains}; D's inner norms {norms}"


def hard_mask(image: Tensor, mask: Tensor, tau: float) -> Tensor:
    """Mask an image by Eq 6, x * 1[mask >= tau], (N, 3, H, W); no gradient flows through the mask."""
    return image * (mask.detach() >= tau).to(image.dtype)


class StageMachine:
    """Decides the stage at the start of each step; switches at most once and never back.

    The switch happens, by ``switch_by``: ``epoch``: at the first step of epoch ``switch_at`` (0-based: epochs 0 to
    switch_at - 1 are in stage ``full``); ``step``: at step ``switch_at``; ``settled``: once the mean mask coverage
    has moved by less than ``settled_tolerance`` in each of ``settled_epochs`` epochs, at the latest at epoch
    ``switch_at``.
    """

    def __init__(self, config: StageConfig, has_attention: bool = True) -> None:
        self.config = config
        self._staged = config.masking == "staged" and has_attention
        self._always = config.masking == "always" and has_attention
        self.switched_at_step: int | None = None
        self._coverages: list[float] = []

    @property
    def stage(self) -> Stage:
        switched = self.switched_at_step is not None
        return Stage.MASKED if switched or self._always else Stage.FULL

    @property
    def rules(self) -> Rules:
        masked = self.stage is Stage.MASKED
        return Rules(
            stage=self.stage,
            discriminator_sees_masked=masked,
            # ``always``: D sees masked images from the start, and attention trains throughout
            attention_trains=not masked or self._always,
            discriminator_normalises=not masked or self.config.norm_after_switch == "kept",
        )

    def advance(self, step: int, epoch: int) -> bool:
        """Call before each step (0-based, as ``epoch``); returns True if this step is the first of stage masked."""
        if not self._staged or self.switched_at_step is not None:
            return False
        by, at = self.config.switch_by, self.config.switch_at
        due = step >= at if by == "step" else epoch >= at
        if due or (by == "settled" and self._settled()):
            self.switched_at_step = step
            return True
        return False

    def epoch_ended(self, coverage: float) -> None:
        """Record the epoch's mean mask coverage over both domains, for ``settled``."""
        self._coverages = [*self._coverages, coverage][-(self.config.settled_epochs + 1) :]

    def _settled(self) -> bool:
        recent = self._coverages
        moves = [abs(b - a) for a, b in itertools.pairwise(recent)]
        return len(moves) >= self.config.settled_epochs and max(moves) < self.config.settled_tolerance

    def state_dict(self) -> dict[str, Any]:
        return {"switched_at_step": self.switched_at_step, "coverages": list(self._coverages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.switched_at_step = state["switched_at_step"]
        self._coverages = [float(c) for c in state["coverages"]]


def shown_to_discriminator(image: Tensor, mask: Tensor, rules: Rules, tau: float) -> Tensor:
    """The image as the discriminator sees it in this stage, (N, 3, H, W)."""
    return hard_mask(image, mask, tau) if rules.discriminator_sees_masked else image


def mask_health(mask: Tensor, tau: float) -> Tensor:
    """:data:`HEALTH_KEYS` of a batch of masks (N, 1, H, W) in [0, 1]: float32 (5,), on the masks' device.

    Mean coverage, share of pixels at or above ``tau``, bimodality (share of pixels below 0.1 or above 0.9), and two
    means over images: of the standard deviation within an image (0: constant), and of the opacity, i.e. the mean
    attention over the pixels at or above ``tau`` (0 if there are none).
    """
    m = mask.detach().float()
    above = (m >= tau).float()
    bimodal = ((m < 0.1) | (m > 0.9)).float().mean()
    flat, flat_above = m.flatten(1), above.flatten(1)
    opacity = (flat * flat_above).sum(dim=1) / flat_above.sum(dim=1).clamp(min=1)
    return torch.stack([m.mean(), above.mean(), bimodal, flat.std(dim=1).mean(), opacity.mean()])


HEALTH_KEYS = ("coverage", "above_tau", "bimodality", "spread", "opacity")
_FAINT = 0.4
"""Below the opacity of masks that have found their objects: about 0.5, because soft edges lower the mean."""


def collapse(health: Mapping[str, float]) -> str | None:
    """``all zeros`` or ``all ones`` if a mask's epoch means show a collapse, otherwise None."""
    if health["coverage"] < 0.005:
        return "all zeros"
    if health["coverage"] > 0.98:
        return "all ones"
    return None


def faint(opacity: float) -> bool:
    """Whether translations are mostly source image even inside the mask, i.e. the stage switch came too early.

    In stage ``masked`` such faint fakes are compared with real objects at full strength, and the generator cannot
    compensate for the blend.
    """
    return opacity < _FAINT
