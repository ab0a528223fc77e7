"""The networks against outputs of the original codes, element by element.

``original/`` holds what the authors' TensorFlow code (``agit``), the PyTorch port (``uaggan``) and pytorch-CycleGAN
(``cyclegan``), run unmodified in fp32, gave for an image and weights that a rule makes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from torch import Tensor, nn

from agit_core.config import NetworkConfig
from agit_core.layers import InstanceNorm
from agit_core.networks import Networks

FOLDER = Path(__file__).with_name("original")
IMAGE = torch.from_numpy(RandomState(64).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32))
NEAR = 1e-4


def drawn(seed: int, like: Tensor, mean: float, deviation: float) -> Tensor:
    return torch.from_numpy(mean + RandomState(seed).standard_normal(tuple(like.shape)) * deviation)


@torch.no_grad()
def by_the_rule(network: nn.Module) -> nn.Module:
    """The network with the rule's weights."""
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    for k, layer in enumerate(convolutions):
        layer.weight.copy_(drawn(1000 + k, layer.weight, 0, 0.04))
        if layer.bias is not None:
            layer.bias.copy_(drawn(2000 + k, layer.bias, 0, 0.1))
    norms = [m for m in network.modules() if isinstance(m, InstanceNorm) and m.weight is not None]
    for j, norm in enumerate(norms):
        norm.weight.copy_(drawn(2500 + j, norm.weight, 1, 0.1))  # type: ignore[union-attr,arg-type]
        norm.bias.copy_(drawn(2700 + j, norm.bias, 0, 0.1))  # type: ignore[union-attr,arg-type]
    return network


@torch.no_grad()
def outputs(config: NetworkConfig) -> dict[str, Tensor]:
    networks = Networks(config)
    critic = by_the_rule(networks.discriminator_a)
    found = {"generator": by_the_rule(networks.generator_ab)(IMAGE), "discriminator": critic(IMAGE)}
    if networks.attention_a is not None:
        found["attention"] = by_the_rule(networks.attention_a)(IMAGE)
    if config.preset == "agit":
        found["discriminator_without_norms"] = critic(IMAGE, normalise=False)
    return found


def assert_equal(found: dict[str, Tensor], file: Path) -> None:
    with np.load(file) as original:
        assert found.keys() == set(original.files)
        for name, values in original.items():
            assert found[name].shape == values.shape, name
            assert np.abs(found[name].numpy() - values).max() < NEAR, name


@pytest.mark.parametrize("preset", ["agit", "uaggan", "cyclegan"])
def test_a_preset_is_the_original_network(preset: str) -> None:
    assert_equal(outputs(NetworkConfig(preset=preset)), FOLDER / f"{preset}.npz")  # type: ignore[arg-type]


def test_the_first_revision_of_uaggan_is_what_it_was() -> None:
    """Its models are still around; the file holds what that version gave, each map at every eighth pixel."""
    found = outputs(NetworkConfig(preset="uaggan", revision=1))
    sparse = {
        name: value if name == "discriminator" else value[..., ::8, ::8] for name, value in found.items()
    }
    assert_equal(sparse, FOLDER / "uaggan_revision_1.npz")
