"""Outputs of a running training: sample pictures, scores of checkpoints, and the mask collapse alarm."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from agit_core import networks, preview
from agit_core.augment import to_float
from agit_core.config import NetworkConfig
from agit_core.errors import RunFailed
from agit_core.loader import ImageSource
from agit_core.stages import HEALTH_KEYS, collapse, faint
from agit_core.trainer import MeanFigures
from pipeline import records, storage

_COLLAPSED_WINDOWS = 3


class CollapsedMask(RunFailed):
    """A mask has collapsed and ``train.stop_on_collapse`` is set."""


class MaskWatch:
    """Raises an alarm once per collapse: when the masks of an epoch, or of several consecutive windows, collapsed.

    ``alarmed`` stays True until they recover.
    """

    def __init__(self) -> None:
        self._windows, self.alarmed = 0, False

    def __call__(
        self, window: MeanFigures, epochs: Sequence[tuple[int, MeanFigures]], step: int
    ) -> str | None:
        """Update with new means; return the alarm's message if one is due, else None.

        Args:
            window: means since the last call.
            epochs: epochs that ended since the last call, with their means.
        """
        now = collapsed(window.mask_health)
        self._windows = self._windows + 1 if now else 0
        epoch = any(collapsed(means.mask_health) for _, means in epochs)
        if not now:
            self.alarmed = False
        if self.alarmed or not now or not (epoch or self._windows >= _COLLAPSED_WINDOWS):
            return None
        self.alarmed = True
        return f"the attention of domain {now[0]} has collapsed to {now[1]} at step {step}"


def collapsed(health: dict[str, float]) -> tuple[str, str] | None:
    """The first domain whose mask has collapsed and its state (``all zeros``, ``all ones``), or None."""
    states = {d: collapse({key: health[f"{key}_{d}"] for key in HEALTH_KEYS}) for d in "ab"}
    return next(((d, state) for d, state in states.items() if state), None)


def faint_at_switch(health: dict[str, float]) -> str | None:
    """Warning if stage ``masked`` began too early; call it for the window that contains the switch."""
    domains = [d for d in "ab" if faint(health[f"opacity_{d}"])]
    if not domains:
        return None
    figures = " and ".join(f"{health[f'opacity_{d}']:.2f} (domain {d})" for d in domains)
    return (
        f"stage masked began while the attention was faint: {figures} where the discriminator looks; such fakes "
        "stay half-transparent beside real objects. Switch later (method.stages.switch_at) or not at all "
        "(method.stages.masking=never)"
    )


class Samples:
    """Sample strips of a few fixed test images.

    Args:
        images: test images per domain, each uint8 (3, S, S).
        count: number of images per domain.
    """

    def __init__(
        self,
        images: Mapping[str, ImageSource],
        count: int,
        architecture: NetworkConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        self._fixed = {
            domain: to_float(torch.stack([source.read(i) for i in range(min(len(source), count))]))
            for domain, source in images.items()
            if len(source)
        }
        # initialisation draws random numbers; fork, so that training does not depend on whether samples are drawn
        with torch.random.fork_rng(devices=[]):
            self._networks = networks.build(architecture, seed)
        self._networks.to(device)
        self._device = device

    def draw(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draw strips, uint8 (3, H, W), by file name; ``weights``: state dict, with averaged generators if any."""
        # a separate copy of the networks, neither compiled nor wrapped by DDP
        self._networks.load_state_dict(weights)
        strips = {}
        for domain, images in self._fixed.items():
            direction = "a2b" if domain == "a" else "b2a"
            for i, image in enumerate(images.split(1)):
                shown = preview.strips(self._networks, image.to(self._device), direction)
                strips[f"{direction}-{i}.png"] = shown[0]
        return strips


def sample_files(strips: dict[str, Tensor], run_uri: str, step: int) -> dict[str, bytes]:
    """Encode strips as PNG files (URI -> content), followed by their description."""
    folder = records.sample_folder(run_uri, step)
    files = {storage.join(folder, name): preview.png(strip) for name, strip in strips.items()}
    tile = next(iter(strips.values())).shape[-2] if strips else 0
    description = {"step": step, "tile": tile, "columns": list(preview.COLUMNS), "strips": list(strips)}
    return files | {records.SAMPLE_STEP.uri(folder): json.dumps(description).encode()}


def scores(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Scores of a checkpoint: mean losses over rows of the metrics, both directions together; lower is better."""
    names = {key.rpartition("_")[0] for row in rows for key in row["losses"]}
    return {
        name: sum(v for row in rows for k, v in row["losses"].items() if k.rpartition("_")[0] == name)
        / len(rows)
        for name in sorted(names)
    }
