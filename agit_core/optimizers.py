"""Adam and its schedule: by default constant for the first half of all steps, then linear to 0."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn, optim
from torch.nn import Parameter

from agit_core.config import OptimizerConfig
from agit_core.networks import Networks


def _parameters(*modules: nn.Module | None) -> list[Parameter]:
    return [p for m in modules if m is not None for p in m.parameters()]


def build_optimizers(
    networks: Networks, config: OptimizerConfig, fused: bool
) -> tuple[optim.Adam, optim.Adam]:
    """Build one Adam for generators and attention, and one for the discriminators.

    Attention shares the generators' optimiser because it trains through the same losses (Eq 5). While it is frozen,
    its parameters have no gradient, so Adam skips them and they stay bit-identical.
    """
    rate = config.learning_rate
    groups = [{"params": _parameters(networks.generator_ab, networks.generator_ba), "lr": rate, "peak": rate}]
    attention = _parameters(networks.attention_a, networks.attention_b)
    if attention:
        attention_rate = rate if config.attention_learning_rate is None else config.attention_learning_rate
        groups.append({"params": attention, "lr": attention_rate, "peak": attention_rate})
    discriminators = _parameters(networks.discriminator_a, networks.discriminator_b)
    settings = {"betas": (config.beta1, config.beta2), "fused": fused}
    return (
        optim.Adam(groups, **settings),  # type: ignore[arg-type]
        optim.Adam([{"params": discriminators, "lr": rate, "peak": rate}], **settings),  # type: ignore[arg-type]
    )


def load_state(optimizer: optim.Adam, state: dict[str, Any]) -> None:
    """Restore an optimiser exactly, with the moments in the memory layout of their parameters.

    Checkpoints hold contiguous tensors, but the fused kernel walks parameters and moments by address: with
    channels_last weights and contiguous moments it would pair the wrong elements.
    """
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(value)


def learning_rate_factor(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Share of the full rate in a step, in [0, 1]: a function of the position alone (``config.policy``).

    ``linear`` and ``cosine`` are 1 for ``constant_fraction`` of the steps and reach 0 after the last one.
    """
    if config.policy == "step":
        # a share of the steps is seldom exact in binary: 3 * 0.1 * 10 is more than 3
        return float(config.step_factor ** math.floor(step / (total_steps * config.step_fraction) + 1e-9))
    constant = total_steps * config.constant_fraction
    if step < constant:
        return 1.0
    left = max(0.0, (total_steps - step) / max(total_steps - constant, 1e-9))
    return left if config.policy == "linear" else (1 - math.cos(math.pi * left)) / 2


def set_learning_rate(optimizer: optim.Optimizer, factor: float) -> None:
    """Set each group's rate to ``factor`` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
