"""Shard plan: each entry's shard and position, determined by the hash of its name.

A new file therefore changes only one shard, and the order of the listing does not matter. The number of shards is a
power of two: when a data set outgrows it, each shard is split in two.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from pipeline.data.prepare.decode import ImagePolicy
from pipeline.data.sources.source import Entry
from pipeline.records import Shard

PARTS = ".parts"
"""Folder of the records of finished shards; it exists only while the data set is unfinished."""

_BYTES_PER_PIXEL = {"jpeg": 0.6, "png": 2.0}  # estimates, for the number of shards


@dataclass(frozen=True)
class ShardPlan:
    """One shard: its number among the ``count`` shards of its split, and its entries in order."""

    split: str
    number: int
    count: int
    entries: list[Entry]

    @property
    def path(self) -> str:
        return f"{self.split}/part-{self.number:05d}.parquet"

    @property
    def note(self) -> str:
        return f"{PARTS}/{self.split}-{self.number:05d}.parquet"


@dataclass(frozen=True)
class Done:
    """A stored shard. ``shard``: its entry in the manifest; ``index``: its part of the index; ``kept``: number of
    entries reused from an earlier data set."""

    plan: ShardPlan
    shard: Shard
    masks: int
    rejected: list[dict[str, str]]
    notes: list[dict[str, str]]
    index: pa.Table
    kept: int


def plan_shards(split: str, entries: list[Entry], policy: ImagePolicy, shard_bytes: int) -> list[ShardPlan]:
    """Distribute the entries of a split over shards; the result depends only on their names and number."""
    expected = len(entries) * policy.size**2 * _BYTES_PER_PIXEL[policy.encoding]
    bits = 0
    while expected > 1.5 * shard_bytes * 2**bits:
        bits += 1
    shards: list[list[tuple[bytes, Entry]]] = [[] for _ in range(2**bits)]
    for entry in entries:
        key = entry.key
        shards[int.from_bytes(key[:4], "big") >> (32 - bits)].append((key, entry))
    return [
        ShardPlan(split, number, len(shards), [entry for _, entry in sorted(members, key=lambda m: m[0])])
        for number, members in enumerate(shards)
    ]
