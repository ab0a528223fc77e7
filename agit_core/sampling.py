"""Which images a training step sees: a pure function of (seed, step), whatever the number of workers.

Global step k takes the items [k * B, (k + 1) * B) of an endless stream; rank r takes its slice of these slots.
An epoch is max(|A|, |B|) items. Each domain goes through its own permutation, drawn from (seed, epoch): A and B
are not paired. The smaller domain starts a new permutation whenever one is used up.

Sets that are too large to be kept near are shuffled in windows: the stored order is cut into blocks, the blocks
are permuted, each slot of the global batch gets an equal run of them, and in each run every window of images is
permuted. A slot then reads few blocks at a time, and only its own, wherever it is computed; images of one batch
come from different blocks; and every image still comes exactly once per epoch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from agit_core.errors import BadInput

Domain = Literal["a", "b"]


@dataclass(frozen=True)
class Item:
    """One image of one domain in one step; ``key`` seeds its augmentation."""

    index: int
    epoch: int
    key: str


@lru_cache(maxsize=8)
def _permutation(key: str, length: int) -> Tensor:
    """int32: 20 MB for five million images."""
    generator = torch.Generator().manual_seed(stable_seed(key))
    return torch.randperm(length, generator=generator).to(torch.int32)


@lru_cache(maxsize=512)
def _window_permutation(key: str, length: int) -> Tensor:
    return _permutation.__wrapped__(key, length)


@lru_cache(maxsize=8)
def _block_permutation(key: str, blocks: int) -> tuple[Tensor, int]:
    """The order of the blocks, and the place of the last one, which may be shorter."""
    order = _permutation.__wrapped__(key, blocks)
    return order, int((order == blocks - 1).nonzero())


def _windowed(key: str, length: int, place: int, streams: int, block: int, rows: int) -> int:
    """The index at a place of the windowed order; ``rows``: images of a window of one stream."""
    row, stream = divmod(place, streams)
    each, longer = divmod(length, streams)  # the first ``longer`` streams have one image more
    start, size = stream * each + min(stream, longer), each + (stream < longer)
    window = row // rows * rows
    order = _window_permutation(f"{key}:{stream}:{window}", min(rows, size - window))
    at = start + window + int(order[row - window])
    blocks = -(-length // block)
    permuted, last = _block_permutation(f"{key}:blocks", blocks)
    short = length - (blocks - 1) * block
    if at < last * block:
        number, inside = divmod(at, block)
    elif at < last * block + short:
        number, inside = last, at - last * block
    else:
        number, inside = divmod(at - last * block - short, block)
        number += last + 1
    return int(permuted[number]) * block + inside


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
        block: images that lie together and are read together.
        window: images per domain that are shuffled among each other; 0: all of them.
    """

    seed: int
    length_a: int
    length_b: int
    batch_size: int
    block: int = 1
    window: int = 0

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

    @property
    def rows(self) -> int:
        """Steps that a slot spends in one window: whole blocks, at least one; 0 when there are no windows."""
        return max(1, self.window // self.batch_size // self.block) * self.block if self.window else 0

    def items(self, step: int, domain: Domain, slots: range) -> list[Item]:
        """The items of some slots of the global batch of a step."""
        length = self.length_a if domain == "a" else self.length_b
        items = []
        for slot in slots:
            epoch, position = divmod(step * self.batch_size + slot, self.epoch_length)
            lap, place = divmod(position, length)
            key = f"{self.seed}:order:{domain}:{epoch}:{lap}"
            if self.window:
                index = _windowed(key, length, place, self.batch_size, self.block, self.rows)
            else:
                index = int(_permutation(key, length)[place])
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
