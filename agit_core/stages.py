"""The two stages of training as one explicit object: what D sees, what is trained, which norms are on.

Stage ``full``: the discriminators judge whole images; generators, attention and discriminators train.
Stage ``masked``: they judge ``x * 1[mask >= tau]`` (Eq 6), without inner instance norms; attention is frozen.
A discriminator that sees the background pushes the generator to change it, and the attention map drifts to
all ones: that is why the second stage exists.
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
    """Named as in the reference: what the discriminator is shown."""

    FULL = "full"
    MASKED = "masked"


@dataclass(frozen=True)
class Rules:
    """What a stage means for one training step."""

    stage: Stage
    discriminator_sees_masked: bool
    attention_trains: bool
    discriminator_normalises: bool

    def describe(self) -> str:
        """One line for the log at the switch."""
        sees = "masked images" if self.discriminator_sees_masked else "whole images"
        trains = (
            "generators, attention, discriminators" if self.attention_trains else "generators, discriminators"
        )
        norms = "on" if self.discriminator_normalises else "off"
        return f"stage {self.stage.value}: D sees {sees}; trained: {trains}; D's inner norms {norms}"


def hard_mask(image: Tensor, mask: Tensor, tau: float) -> Tensor:
    """Eq 6: x * 1[mask >= tau], (N, 3, H, W); no gradient passes through the mask."""
    return image * (mask.detach() >= tau).to(image.dtype)


class StageMachine:
    """Decides at the start of each step which stage it belongs to. It switches once and never back.

    ``epoch``: from the first step of epoch ``switch_at`` (0-based: epochs 0 to switch_at - 1 are stage 1).
    ``step``: from step ``switch_at``. ``settled``: when the mean mask coverage moved less than
    ``settled_tolerance`` in each of ``settled_epochs`` epochs, at the latest at epoch ``switch_at``.
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
            # ``always`` is the seed's variant: D sees masked images from the start and attention still trains
            attention_trains=not masked or self._always,
            discriminator_normalises=not masked or self.config.norm_after_switch == "kept",
        )

    def advance(self, step: int, epoch: int) -> bool:
        """Called before 0-based ``step`` of ``epoch``; True when this step is the first of stage masked."""
        if not self._staged or self.switched_at_step is not None:
            return False
        by, at = self.config.switch_by, self.config.switch_at
        due = step >= at if by == "step" else epoch >= at
        if due or (by == "settled" and self._settled()):
            self.switched_at_step = step
            return True
        return False

    def epoch_ended(self, coverage: float) -> None:
        """Notes the epoch's mean mask coverage (both domains), which ``settled`` watches."""
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
    """The image as the discriminator sees it in this stage."""
    return hard_mask(image, mask, tau) if rules.discriminator_sees_masked else image


def mask_health(mask: Tensor, tau: float) -> Tensor:
    """:data:`HEALTH_KEYS` of a batch of masks (N, 1, H, W), as a float32 tensor that stays on the device.

    Mean coverage, share at or above ``tau``, bimodality (share of pixels below 0.1 or above 0.9), and two means
    over images: of the standard deviation inside an image (0: the same value everywhere), and of the opacity,
    the mean attention of its pixels at or above ``tau`` (0 where there are none).
    """
    m = mask.detach().float()
    seen = (m >= tau).float()
    bimodal = ((m < 0.1) | (m > 0.9)).float().mean()
    each, shown = m.flatten(1), seen.flatten(1)
    opacity = (each * shown).sum(dim=1) / shown.sum(dim=1).clamp(min=1)
    return torch.stack([m.mean(), seen.mean(), bimodal, each.std(dim=1).mean(), opacity.mean()])


HEALTH_KEYS = ("coverage", "above_tau", "bimodality", "spread", "opacity")
_FAINT = 0.4
"""Opacity of masks that have found their objects is 0.5 already, since their soft edges count."""


def collapse(health: Mapping[str, float]) -> str | None:
    """``all zeros`` or ``all ones`` when a mask's epoch means say it has collapsed, otherwise None."""
    if health["coverage"] < 0.005:
        return "all zeros"
    if health["coverage"] > 0.98:
        return "all ones"
    return None


def faint(opacity: float) -> bool:
    """Whether translations are mostly source even where the discriminator looks.

    In stage ``masked`` such fakes are compared with real objects at full strength, and no generator can make up
    for what the blend takes away: the switch came too early.
    """
    return opacity < _FAINT
