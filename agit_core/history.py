"""Image pool of earlier fakes (Shrivastava et al. 2017), each stored with its mask.

Earlier fakes make up half of what the discriminator sees, so that it does not forget the generator's recent
behaviour. The pool of ``size`` images is divided among the ``batch_size`` slots of the global batch, and a slot's
random choices depend only on (seed, step, slot). The pool is therefore independent of the number of ranks: each
rank holds the parts of its own slots, a checkpoint holds them all.
"""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from agit_core.config import HistoryConfig


class History:
    """Earlier fakes of one domain for some slots of the global batch.

    Args:
        slots: this rank's slots of the global batch.
        batch_size: size of the global batch, i.e. the total number of slots.
        domain: part of the random seed, so that the two domains draw differently.
    """

    def __init__(self, config: HistoryConfig, slots: range, batch_size: int, seed: int, domain: str) -> None:
        self.config = config
        self.slots = slots
        self.capacity = math.ceil(config.size / batch_size) if config.size else 0
        self._key = f"{seed}:history:{domain}"
        # per slot: its entries so far, each an image (3, H, W) stacked with its mask (1, H, W)
        self._entries: dict[int, list[Tensor]] = {slot: [] for slot in slots}

    def exchange(self, step: int, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Store this step's fakes and return those to show to the discriminator, with their masks.

        Until a slot's part is full, its new fake is stored and returned. After that, with the configured
        probability, an old entry is returned and the new fake replaces it.

        Args:
            images: (n, 3, H, W), detached, one per slot. masks: (n, 1, H, W).
        """
        if not self.capacity:
            return images, masks
        out = []
        for slot, pair in zip(self.slots, torch.cat([images, masks.to(images.dtype)], 1), strict=True):
            entries = self._entries[slot]
            draw = random.Random(f"{self._key}:{step}:{slot}")
            if len(entries) < self.capacity:
                entries.append(pair.clone())
                out.append(pair)
            elif draw.random() < self.config.probability:
                place = draw.randrange(self.capacity)
                out.append(entries[place])
                entries[place] = pair.clone()
            else:
                out.append(pair)
        stacked = torch.stack(out)
        return stacked[:, :3].contiguous(), stacked[:, 3:].contiguous()

    def state(self) -> dict[int, Tensor]:
        """Checkpoint state on the CPU: slot -> (entries, 4, H, W)."""
        return {s: torch.stack(e).cpu() for s, e in self._entries.items() if e}

    def load(self, state: dict[int, Tensor], device: torch.device) -> None:
        """Restore this rank's slots from a state that holds the slots of all ranks."""
        self._entries = {s: list(state[s].to(device)) if s in state else [] for s in self.slots}
