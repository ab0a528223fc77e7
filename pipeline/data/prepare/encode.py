"""The work of a preparation worker: read entries and turn each into a row, or into a reason for its rejection."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.data.format.shards import Row
from pipeline.data.images import Unusable
from pipeline.data.prepare.decode import ImagePolicy, store
from pipeline.data.sources.source import Entry

_READS_IN_FLIGHT = 16


@dataclass(frozen=True, slots=True)
class Rejected:
    """An entry with the reason why it has no row or, as a note, why part of its contents is left out."""

    name: str
    reason: str


@dataclass(frozen=True)
class Task:
    """Some entries of one shard, in the shard's order."""

    entries: tuple[Entry, ...]
    policy: ImagePolicy
    remote: bool


@dataclass(frozen=True)
class Encoded:
    """Result of a task: ``rows`` in the order of its entries, ``rejected`` entries, and ``notes`` on omissions."""

    rows: list[Row]
    rejected: list[Rejected]
    notes: list[Rejected]


def encode(task: Task) -> Encoded:
    """Read, check, resize and encode the entries of a task. Deterministic: equal tasks give equal bytes.

    Raises:
        RunFailed: the source's storage or network does not respond.
    """
    result = Encoded([], [], [])
    for entry, image, mask in _read(task):
        if isinstance(image, str):
            result.rejected.append(Rejected(entry.name, image))
            continue
        if isinstance(mask, str):
            result.notes.append(Rejected(entry.name, mask))
            mask = None
        try:
            stored = store(image, mask, task.policy)
        except Unusable as reason:
            result.rejected.append(Rejected(entry.name, str(reason)))
            continue
        reasons = [reason for reason in (stored.mask_refused, *stored.notes) if reason]
        if reasons:
            result.notes.append(Rejected(entry.name, "; ".join(reasons)))
        result.rows.append(
            Row(
                name=entry.name,
                image=stored.data,
                mask=stored.mask,
                size=task.policy.size,
                sha256=stored.sha256,
                source_sha256=hashlib.sha256(image).digest(),
                source_digest=entry.digest,
                source_width=stored.width,
                source_height=stored.height,
                look=stored.dhash,
            )
        )
    return result


def _read(task: Task) -> Iterator[tuple[Entry, bytes | str, bytes | str | None]]:
    """Yield each entry with its image and mask, each as bytes or as the reason why it cannot be read."""
    if not task.remote:
        yield from map(_read_one, task.entries)
        return
    with ThreadPoolExecutor(_READS_IN_FLIGHT) as pool:
        yield from pool.map(_read_one, task.entries)


def _read_one(entry: Entry) -> tuple[Entry, bytes | str, bytes | str | None]:
    try:
        image: bytes | str = entry.image.read()
    except OSError as error:
        image = f"cannot be read: {error.strerror or error}"
    try:
        mask = entry.mask.read() if entry.mask else None
    except OSError as error:
        return entry, image, f"the mask cannot be read: {error.strerror or error}"
    return entry, image, mask
