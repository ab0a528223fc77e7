"""Which images a training step sees: a pure function of (seed, step), whatever the number of workers.

Global step k takes the items [k * B, (k + 1) * B) of an endless stream; rank r takes its slice of these slots.
An epoch is max(|A|, |B|) items. Each domain goes through its own permutation, drawn from (seed, epoch): A and B
are not paired. The smaller domain starts a new permutation whenever one is used up.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from agit_core.errors import BadInput

Domain = Literal["a", "b"]


@dataclass(frozen=True)
class Item:
    """One image of one domain in one step; ``key`` seeds its augmentation."""

    index: int
    epoch: int
    key: str


@lru_cache(maxsize=8)
def _permutation(key: str, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(stable_seed(key))
    return torch.randperm(length, generator=generator).tolist()


def stable_seed(key: str) -> int:
    """A 63-bit seed from a text, the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class SamplePlan:
    """The order of the training images.

    Args:
        seed: of the whole run.
        length_a, length_b: training images per domain.
        batch_size: the global batch B.
    """

    seed: int
    length_a: int
    length_b: int
    batch_size: int

    def __post_init__(self) -> None:
        if min(self.length_a, self.length_b, self.batch_size) < 1:
            raise BadInput(
                "a sample plan needs at least one image in each domain and a batch of at least one, "
                f"not {self.length_a} and {self.length_b} images in batches of {self.batch_size}"
            )

    @property
    def epoch_length(self) -> int:
        """Items per epoch: max(|A|, |B|)."""
        return max(self.length_a, self.length_b)

    def steps(self, epochs: int) -> int:
        """Steps that cover ``epochs`` epochs; the last one may reach into the next."""
        return -(-epochs * self.epoch_length // self.batch_size)

    def epoch_of(self, step: int) -> int:
        """The epoch of a step's first item, 0-based."""
        return step * self.batch_size // self.epoch_length

    def starts_epoch(self, step: int) -> bool:
        """Whether an epoch ended with the step before this one."""
        return step > 0 and self.epoch_of(step) != self.epoch_of(step - 1)

    def items(self, step: int, domain: Domain, slots: range) -> list[Item]:
        """The items of some slots of the global batch of a step."""
        length = self.length_a if domain == "a" else self.length_b
        items = []
        for slot in slots:
            epoch, position = divmod(step * self.batch_size + slot, self.epoch_length)
            lap, place = divmod(position, length)
            order = _permutation(f"{self.seed}:order:{domain}:{epoch}:{lap}", length)
            index = order[place]
            items.append(Item(index, epoch, f"{self.seed}:augment:{domain}:{epoch}:{lap}:{index}"))
        return items


def slots_of(rank: int, world_size: int, batch_size: int) -> range:
    """Rank r's slice of the global batch; sizes differ by at most one when it does not divide evenly.

    Raises:
        BadInput: fewer items than ranks: a rank would have nothing to do.
    """
    if world_size > batch_size:
        raise BadInput(
            f"a global batch of {batch_size} cannot be split over {world_size} workers; "
            f"set train.batch_size to at least {world_size}"
        )
    return range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
