"""Sampling order: the images of a training step are a pure function of (seed, step), for any number of workers.

Global step k takes the items [k * B, (k + 1) * B) of an endless stream; rank r takes its slice of these slots.
An epoch is max(|A|, |B|) items. Each domain follows its own permutation, drawn from (seed, epoch): A and B are
unpaired. The smaller domain starts a new permutation whenever one is exhausted.

Data sets too large to cache are shuffled in windows: the stored order is cut into blocks, the blocks are permuted,
each slot of the global batch gets an equal run of them, and within a run each window of images is permuted. A slot
then reads few blocks at a time, shared with no other slot; images of one batch come from different blocks; and every
image still occurs exactly once per epoch.
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
    """Permutation of ``range(length)``; int32, so 20 MB for five million images."""
    generator = torch.Generator().manual_seed(stable_seed(key))
    return torch.randperm(length, generator=generator).to(torch.int32)


@lru_cache(maxsize=512)
def _window_permutation(key: str, length: int) -> Tensor:
    return _permutation.__wrapped__(key, length)


@lru_cache(maxsize=8)
def _block_permutation(key: str, blocks: int) -> tuple[Tensor, int]:
    """Order of the blocks, and the position in it of the last block, which may be shorter."""
    order = _permutation.__wrapped__(key, blocks)
    return order, int((order == blocks - 1).nonzero())


def _windowed(key: str, length: int, place: int, streams: int, block: int, rows: int) -> int:
    """Image index at ``place`` of the windowed order; ``rows``: images per window of one stream."""
    row, stream = divmod(place, streams)
    each, longer = divmod(length, streams)  # the first ``longer`` streams have one more image
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
    """Hash a string to a 63-bit seed, identical on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class SamplePlan:
    """Order of the training images.

    Args:
        seed: the run's seed.
        length_a, length_b: training images per domain.
        batch_size: size B of the global batch.
        block: consecutive images that are stored and read together.
        window: images per domain in one shuffle window; 0: shuffle the whole domain.
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
        """Number of steps that cover ``epochs`` epochs; the last step may extend into the next epoch."""
        return -(-epochs * self.epoch_length // self.batch_size)

    def epoch_of(self, step: int) -> int:
        """Epoch of a step's first item, 0-based."""
        return step * self.batch_size // self.epoch_length

    def starts_epoch(self, step: int) -> bool:
        """Whether this step is the first of its epoch, but not the first of the run."""
        return step > 0 and self.epoch_of(step) != self.epoch_of(step - 1)

    @property
    def rows(self) -> int:
        """Steps that a slot spends in one window: a multiple of ``block``, at least one block; 0 without windows."""
        return max(1, self.window // self.batch_size // self.block) * self.block if self.window else 0

    def items(self, step: int, domain: Domain, slots: range) -> list[Item]:
        """Items of the given slots of a step's global batch."""
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
    """A rank's slice of the global batch; sizes differ by at most one where it does not divide evenly.

    Raises:
        BadInput: the batch has fewer items than there are ranks.
    """
    if world_size > batch_size:
        raise BadInput(
            f"a global batch of {batch_size} cannot be split over {world_size} workers; "
            f"set train.batch_size to at least {world_size}"
        )
    return range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
