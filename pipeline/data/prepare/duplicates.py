"""Duplicate detection: equal files by SHA-256, near duplicates by perceptual hash."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

NEAR_BITS = 3
"""Largest Hamming distance of the perceptual hashes (128 bits) of near duplicates. Hashes within 3 bits agree in at
least one of four bands of 32 bits, so sorting by each band finds all candidates."""

COPY_OF = "duplicate of"
"""Prefix of the quarantine reason of duplicates."""
_BANDS = NEAR_BITS + 1
_CROWDED = 4096  # hashes that share a band; pairwise comparison is quadratic


@dataclass(frozen=True)
class Duplicates:
    """Groups of at least two rows, as sorted row numbers of the searched table.

    Attributes:
        exact: groups of byte-identical originals.
        near: groups of similar images, except those that are already in ``exact``.
        crowded: number of bands skipped because more than :data:`_CROWDED` hashes share them (blank images).
    """

    exact: list[list[int]]
    near: list[list[int]]
    crowded: int


def find(sha256: pa.Array, look: pa.Array) -> Duplicates:
    """Group the rows by SHA-256 (32 bytes per row) and by perceptual hash (column ``look``, 16 bytes per row)."""
    count = len(sha256)
    if count == 0:
        return Duplicates([], [], 0)
    exact_of = _codes(sha256, 32)
    hashes, hash_of = _unique(look, 16)
    pairs, crowded = _close(hashes)
    _, group_of_hash = connected_components(
        coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(hashes), len(hashes))),
        directed=False,
    )
    exact = _groups(exact_of)
    near = [g for g in _groups(group_of_hash[hash_of]) if len(set(exact_of[g])) > 1]
    return Duplicates([list(map(int, g)) for g in exact], [list(map(int, g)) for g in near], crowded)


def _close(hashes: np.ndarray) -> tuple[np.ndarray, int]:
    """Pairs of hashes within :data:`NEAR_BITS`, int64 (pairs, 2), and the number of skipped bands.

    Args:
        hashes: uint8 (n, 16), distinct rows.
    """
    pairs: list[np.ndarray] = [np.zeros((0, 2), dtype=np.int64)]
    crowded = 0
    words = np.ascontiguousarray(hashes).view(np.uint32)
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
                distance = np.bitwise_count(hashes[members[place]] ^ hashes[rest]).sum(axis=1)
                close = rest[distance <= NEAR_BITS]
                pairs.append(np.stack([np.full(len(close), members[place]), close], axis=1))
    return np.concatenate(pairs), crowded


def _unique(column: pa.Array, width: int) -> tuple[np.ndarray, np.ndarray]:
    values = fixed_bytes(column, width)
    keys, inverse = np.unique(values.view(f"V{width}").ravel(), return_inverse=True)
    return keys.view(np.uint8).reshape(-1, width), inverse


def _codes(column: pa.Array, width: int) -> np.ndarray:
    return _unique(column, width)[1]


def fixed_bytes(column: pa.Array, width: int) -> np.ndarray:
    """View a fixed-size binary column without nulls as uint8 (n, width)."""
    data = column.buffers()[1]
    values = np.frombuffer(data, dtype=np.uint8).reshape(-1, width)
    return np.ascontiguousarray(values[column.offset : column.offset + len(column)])


def _groups(labels: np.ndarray) -> list[np.ndarray]:
    """Groups of row numbers that share a label, at least two each, ordered by their first row."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    several = ends - starts > 1  # skip singletons early: one array object per row would exhaust memory
    groups = [order[start:end] for start, end in zip(starts[several], ends[several], strict=True)]
    return sorted(groups, key=lambda group: int(group[0]))
