"""Small model folders for the tests of inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from agit_core import model_folder
from agit_core.config import MethodConfig, NetworkConfig
from agit_core.networks import build

SMALL = NetworkConfig(
    initialisation="normal",
    generator_width=8,
    generator_blocks=2,
    attention_width=8,
    discriminator_width=8,
)


def write_model(folder: Path, networks: NetworkConfig = SMALL, seed: int = 1, **method: Any) -> Path:
    """A model folder with random weights whose translations differ from their sources."""
    config = MethodConfig(networks=networks, **method)
    return model_folder.write(
        folder, "tiny", config, 64, weights(networks, seed), lineage={"run_id": "tiny-1"}
    )


def weights(networks: NetworkConfig = SMALL, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random weights; attention that takes sides, where fresh networks say 0.5 everywhere."""
    built = build(networks, seed)
    for network in (built.attention_a, built.attention_b):
        if network is not None:
            last = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)][-1]
            last.weight.data *= 30
    return built.state_dict()


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Something with structure at every scale, as photographs have: uint8 (height, width, 3)."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.zeros(1, 3, height, width)
    for cells, strength in ((4, 0.35), (16, 0.2), (64, 0.15), (256, 0.1)):
        noise = torch.randn(1, 3, min(cells, height), min(cells, width), generator=generator)
        picture += strength * F.interpolate(noise, (height, width), mode="bilinear")
    return ((picture[0] + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def save(path: Path, height: int = 24, width: int = 32, seed: int = 0, **options: Any) -> Path:
    """A photograph in a file; the suffix says which format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph(height, width, seed)).save(path, **options)
    return path
