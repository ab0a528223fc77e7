"""What goes where: every entry's shard and place, decided by the hash of its name.

A new file therefore touches one shard, and the order in which files are listed changes nothing. The number of
shards is a power of two: when a set outgrows it, each shard is split in two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.data.prepare.decode import ImagePolicy
from pipeline.data.sources.source import Entry

PARTS = ".parts"
"""Folder of the notes on finished shards; its presence means that the set is not finished."""

_BYTES_PER_PIXEL = {"jpeg": 0.6, "png": 2.0}


@dataclass(frozen=True)
class ShardPlan:
    """One shard: its number among ``count`` of its split, and its entries in their order."""

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
    """A shard that is in storage. ``shard``: its line in the manifest; ``index``: its part of the index."""

    plan: ShardPlan
    shard: dict[str, Any]
    masks: int
    rejected: list[dict[str, str]]
    notes: list[dict[str, str]]
    index: pa.Table
    kept: int


def plan_shards(split: str, entries: list[Entry], policy: ImagePolicy, shard_bytes: int) -> list[ShardPlan]:
    """Distributes the entries of a split; the result depends on names alone, not on their order."""
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
