"""Reuse of rows from an earlier, finished data set with the same settings, where the contents are equal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from agit_core.errors import BadInput
from pipeline import storage
from pipeline.data.format.manifest import read_index
from pipeline.data.format.shards import Row, read_rows
from pipeline.data.prepare.duplicates import COPY_OF
from pipeline.data.prepare.plan import Done, ShardPlan
from pipeline.data.sources.source import Entry
from pipeline.records import Manifest


@dataclass
class Known:
    """What an earlier data set contains of one shard's entries.

    Attributes:
        digests: digests of its rows, by name.
        refused: reasons of its quarantined entries, by (name, digest).
        notes: notes on its rows, by name.
        shards: numbers of its shards that contain these rows, in order.
        whole_shard: whether one of its shards has exactly the planned rows.
    """

    digests: dict[str, str] = field(default_factory=dict)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    shards: list[int] = field(default_factory=list)
    whole_shard: bool = False

    def has(self, entry: Entry) -> bool | str | None:
        """True: it has the entry's row; a string: the reason why it was quarantined; None: unknown or changed."""
        if self.digests.get(entry.name) == entry.digest:
            return True
        return self.refused.get((entry.name, entry.digest))


class Earlier:
    """The rows of a finished data set, found by name and contents."""

    def __init__(self, uri: str, manifest: Manifest) -> None:
        self._uri = uri
        self._manifest = manifest
        self._index = cache(self._read_index)

    def __reduce__(self) -> tuple[type[Earlier], tuple[str, Manifest]]:
        """On its way to a task, which reads the index itself."""
        return Earlier, (self._uri, self._manifest)

    def known(self, plan: ShardPlan) -> Known:
        """What the data set contains of a planned shard's entries."""
        split = self._manifest.splits.get(plan.split)
        if split is None:
            return Known()
        theirs = len(split.shards)
        if theirs >= plan.count:
            each = theirs // plan.count
            shards = list(range(plan.number * each, (plan.number + 1) * each))
        else:
            shards = [plan.number * theirs // plan.count]
        index = self._of(plan.split, shards)
        names, digests = index["name"].to_pylist(), index["source_digest"].to_pylist()
        known = Known(
            digests=dict(zip(names, digests, strict=True)),
            refused={
                (item["name"], item["digest"]): item["reason"]
                for item in split.quarantined
                # retry unreadable files, which may be readable now; duplicates are searched again anyway
                if item.get("digest") and not item["reason"].startswith(("cannot be read", COPY_OF))
            },
            notes={item["name"]: item["reason"] for item in split.notes},
            shards=shards,
        )
        kept = [entry.name for entry in plan.entries if known.has(entry) is True]
        known.whole_shard = theirs == plan.count and kept == names
        return known

    def rows(self, plan: ShardPlan, known: Known, folder: Path) -> Iterator[Row]:
        """The reused rows, in the plan's order."""
        wanted = {entry.name for entry in plan.entries if known.has(entry) is True}
        for number in known.shards:
            shard = self._manifest.splits[plan.split].shards[number]
            path = folder / f"earlier-{plan.split}-{number:05d}.parquet"
            with _whole(self._uri):
                storage.download_file(storage.join(self._uri, shard.path), path)
            if storage.sha256(path) != shard.sha256:
                raise DamagedEarlier(storage.join(self._uri, shard.path))
            for row in read_rows(path, self._of(plan.split, [number])):
                if row.name in wanted:
                    yield row
            path.unlink()

    def copied(self, plan: ShardPlan, known: Known, target: str) -> Done:
        """Copy a whole shard to ``target`` and describe it."""
        split = self._manifest.splits[plan.split]
        shard = split.shards[plan.number]
        where = storage.join(self._uri, shard.path)
        with _whole(self._uri):
            # an object store verifies its objects itself, and hashing would require a download
            if storage.is_remote(where):
                right = storage.size(where) == shard.bytes
            else:
                right = storage.sha256(storage.local_path(where)) == shard.sha256
            if not right:
                raise DamagedEarlier(where)
            storage.copy(where, target)
        index = self._of(plan.split, [plan.number])
        return Done(
            plan,
            shard,
            masks=int(pc.sum(pc.greater(index["mask_length"], 0)).as_py() or 0),
            rejected=[
                {"name": entry.name, "reason": reason, "digest": entry.digest}
                for entry in plan.entries
                if isinstance(reason := known.has(entry), str)
            ],
            notes=[
                {"name": entry.name, "reason": known.notes[entry.name]}
                for entry in plan.entries
                if entry.name in known.notes
            ],
            index=index,
            kept=len(plan.entries),
        )

    def _read_index(self, split: str) -> pa.Table:
        with _whole(self._uri):
            return read_index(self._uri, self._manifest, split).combine_chunks()

    def _of(self, split: str, shards: list[int]) -> pa.Table:
        """The index of some consecutive shards; it is ordered by them."""
        index = self._index(split)
        column = index["shard"].to_numpy()
        start = int(np.searchsorted(column, shards[0], "left"))
        stop = int(np.searchsorted(column, shards[-1], "right"))
        return index.slice(start, stop - start).combine_chunks()


class DamagedEarlier(Exception):
    """A part of the earlier data set is missing or does not match its manifest, so the set cannot be reused."""


@contextlib.contextmanager
def _whole(uri: str) -> Iterator[None]:
    """Turn errors about missing parts (e.g. after an interrupted removal) into DamagedEarlier."""
    try:
        yield
    except (BadInput, FileNotFoundError) as error:
        raise DamagedEarlier(f"{uri}: {error}") from None
