"""Pictures that occur more than once: equal files by SHA-256, near copies by perceptual hash."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

NEAR_BITS = 3
"""Looks (128 bits) that differ in at most so many bits are near copies. With four bands of 32 bits, looks this
close agree in at least one band, so candidates are found by sorting and none is missed."""

COPY_OF = "duplicate of"
"""How the reason begins for which a copy is quarantined."""
_BANDS = NEAR_BITS + 1
_CROWDED = 4096


@dataclass(frozen=True)
class Duplicates:
    """Groups of two and more rows, as sorted row numbers of the table that was searched.

    Attributes:
        exact: the originals are equal to the byte.
        near: they look alike; groups that are already in ``exact`` are not repeated.
        crowded: bands skipped because more than a few thousand different looks share them (blank pictures).
    """

    exact: list[list[int]]
    near: list[list[int]]
    crowded: int


def find(sha256: pa.Array, look: pa.Array) -> Duplicates:
    """Groups the rows of two fixed-size binary columns (32 and 16 bytes per row)."""
    count = len(sha256)
    if count == 0:
        return Duplicates([], [], 0)
    exact_of = _codes(sha256, 32)
    looks, look_of = _unique(look, 16)
    pairs, crowded = _close(looks)
    _, looks_group = connected_components(
        coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(looks), len(looks))),
        directed=False,
    )
    exact = _groups(exact_of)
    near = [g for g in _groups(looks_group[look_of]) if len(set(exact_of[g])) > 1]
    return Duplicates([list(map(int, g)) for g in exact], [list(map(int, g)) for g in near], crowded)


def _close(looks: np.ndarray) -> tuple[np.ndarray, int]:
    """Pairs of different looks within :data:`NEAR_BITS`; ``looks``: uint8 (n, 16), distinct rows."""
    found: list[np.ndarray] = [np.zeros((0, 2), dtype=np.int64)]
    crowded = 0
    words = np.ascontiguousarray(looks).view(np.uint32)
    for band in range(_BANDS):
        order = np.argsort(words[:, band], kind="stable")
        sorted_words = words[order, band]
        starts = np.flatnonzero(np.r_[True, sorted_words[1:] != sorted_words[:-1]])
        ends = np.r_[starts[1:], len(order)]
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            members = order[start:end]
            if len(members) > _CROWDED:
                crowded += 1
                continue
            for place in range(len(members) - 1):
                rest = members[place + 1 :]
                distance = np.bitwise_count(looks[members[place]] ^ looks[rest]).sum(axis=1)
                close = rest[distance <= NEAR_BITS]
                found.append(np.stack([np.full(len(close), members[place]), close], axis=1))
    return np.concatenate(found), crowded


def _unique(column: pa.Array, width: int) -> tuple[np.ndarray, np.ndarray]:
    values = _bytes(column, width)
    keys, inverse = np.unique(values.view(f"V{width}").ravel(), return_inverse=True)
    return keys.view(np.uint8).reshape(-1, width), inverse


def _codes(column: pa.Array, width: int) -> np.ndarray:
    return _unique(column, width)[1]


def _bytes(column: pa.Array, width: int) -> np.ndarray:
    """A fixed-size binary column without nulls as uint8 (n, width)."""
    data = column.buffers()[1]
    values = np.frombuffer(data, dtype=np.uint8).reshape(-1, width)
    return np.ascontiguousarray(values[column.offset : column.offset + len(column)])


def _groups(labels: np.ndarray) -> list[np.ndarray]:
    """Row numbers that share a label, for labels that occur more than once; ordered by their first row."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    several = ends - starts > 1  # an object for every row would fill memory
    groups = [order[start:end] for start, end in zip(starts[several], ends[several], strict=True)]
    return sorted(groups, key=lambda group: int(group[0]))
