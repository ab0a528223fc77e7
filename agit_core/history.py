"""The pool of earlier fakes (Shrivastava et al. 2017): each entry keeps its own mask.

The discriminator would forget what the generator did a moment ago; half of its fakes are therefore older
ones. The pool of ``size`` images is divided among the ``batch_size`` slots of the global batch, and a slot's
choices depend on (seed, step, slot) alone. So the pool means the same whatever the number of ranks is: a rank
holds the parts that belong to its slots, a checkpoint holds all of them.
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
        batch_size: the global batch: slots in all.
        domain: enters the random choices, so that the two domains differ.
    """

    def __init__(self, config: HistoryConfig, slots: range, batch_size: int, seed: int, domain: str) -> None:
        self.config = config
        self.slots = slots
        self.capacity = math.ceil(config.size / batch_size) if config.size else 0
        self._key = f"{seed}:history:{domain}"
        # per slot: the filled entries, each an image (3, H, W) stacked over its mask (1, H, W)
        self._entries: dict[int, list[Tensor]] = {slot: [] for slot in slots}

    def exchange(self, step: int, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Fakes for the discriminator in place of this step's, and the masks that belong to them.

        While a slot's part is not full, its fake is stored and given back. After that, with the configured
        probability, an old entry is given back and the new one takes its place.

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
        chosen = torch.stack(out)
        return chosen[:, :3].contiguous(), chosen[:, 3:].contiguous()

    def state(self) -> dict[int, Tensor]:
        """Slot -> (entries, 4, H, W) on the CPU, for the checkpoint."""
        return {s: torch.stack(e).cpu() for s, e in self._entries.items() if e}

    def load(self, state: dict[int, Tensor], device: torch.device) -> None:
        """Takes this rank's slots out of a state that holds all of them."""
        self._entries = {s: list(state[s].to(device)) if s in state else [] for s in self.slots}
