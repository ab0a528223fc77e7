"""Validation images: held out of the training split by content, together with their duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from agit_core.loader import ImageSource, Prefetching
from agit_core.sampling import Domain
from agit_core.scores.distances import MINIMUM
from pipeline.config import Config
from pipeline.data.format import manifest
from pipeline.records import Manifest

LARGEST_SHARE = 0.2
"""Largest share of a domain's training images that is held out."""
_SPLITS = ("trainA", "trainB", "testA", "testB")


@dataclass(frozen=True)
class Rows:
    """Row numbers of one training split, ascending.

    Attributes:
        trained: int64, rows used for training.
        held: rows used for validation. Duplicates of a held image are in neither.
    """

    trained: np.ndarray
    held: list[int]


def rows(config: Config, data_uri: str, described: Manifest) -> dict[Domain, Rows] | None:
    """Divide the rows of ``trainA`` and ``trainB`` into trained and held-out ones; None if none are held out.

    The images with the lowest SHA-256 are held out, so the selection is stable when images are renamed or moved and
    nearly stable when some are added. Exact and near duplicates (those listed in the manifest, up to 10,000 groups)
    count as one image across both domains. Duplicates of test images are not held out: the test set would then
    influence the choice of the checkpoint.

    Args:
        described: the manifest.
    """
    counts = {
        domain: min(config.validation.images, int(LARGEST_SHARE * described.splits[f"train{domain}"].rows))
        for domain in "AB"
    }
    if min(counts.values()) < MINIMUM:
        return None
    pictures = _pictures(data_uri, described)
    tested = np.concatenate([pictures["testA"], pictures["testB"]])
    held: dict[str, np.ndarray] = {}
    for domain, count in counts.items():
        candidates = np.unique(pictures[f"train{domain}"])
        held[domain] = candidates[~np.isin(candidates, tested)][:count]
        if len(held[domain]) < MINIMUM:
            return None
    apart = np.concatenate(list(held.values()))
    found: dict[Domain, Rows] = {}
    for domain, name in (("A", "a"), ("B", "b")):
        mine = pictures[f"train{domain}"]
        known, first = np.unique(mine, return_index=True)
        trained = np.flatnonzero(~np.isin(mine, apart))
        if not len(trained):
            return None
        found[name] = Rows(trained, sorted(first[np.isin(known, held[domain])].tolist()))  # type: ignore[index]
    return found


def too_few(config: Config, described: Manifest) -> str:
    """One sentence on why :func:`rows` holds nothing out."""
    counts = " and ".join(str(described.splits[f"train{domain}"].rows) for domain in "AB")
    return (
        f"checkpoints are not scored: of {counts} training images at most {LARGEST_SHARE:.0%} are held out, fewer than "
        f"the {MINIMUM} that scores need; add images or set validation.every=null"
    )


def _pictures(data_uri: str, described: Manifest) -> dict[str, np.ndarray]:
    """A group number for each row of each split, equal for duplicates, in the order of SHA-256."""
    from pipeline.data.prepare.duplicates import fixed_bytes  # with SciPy, which only this needs

    near = described.duplicates.near
    columns = ["source_sha256", *(["name"] if near else [])]
    tables = {name: manifest.read_index(data_uri, described, name, columns) for name in _SPLITS}
    # no Python object per row: a set may have ten million
    digests = np.concatenate(
        [
            fixed_bytes(table["source_sha256"].combine_chunks(), 32).view("V32").ravel()
            for table in tables.values()
        ]
    )
    _, numbers = np.unique(digests, return_inverse=True)
    ends = np.cumsum([len(table) for table in tables.values()])[:-1]
    numbers = numbers.ravel()
    if near:
        rows_of = {
            f"{split}/{name}": row
            for row, (split, name) in enumerate(
                (split, name) for split, table in tables.items() for name in table["name"].to_pylist()
            )
        }
        same = np.arange(len(digests))
        for group in near:
            members = [numbers[rows_of[name]] for name in group if name in rows_of]
            if members:
                same[members] = min(members)
        numbers = same[numbers]
    return dict(zip(_SPLITS, np.split(numbers, ends), strict=True))


class Subset:
    """Selected images of a source, renumbered; an :class:`agit_core.loader.ImageSource`."""

    def __init__(self, images: ImageSource, rows: np.ndarray) -> None:
        self._images = images
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> Any:
        """uint8 (3, H, W)."""
        return self._images.read(int(self._rows[index]))

    def expect(self, index: int) -> None:
        """As :class:`agit_core.loader.Prefetching`."""
        if isinstance(self._images, Prefetching):
            self._images.expect(int(self._rows[index]))

    def forget(self) -> None:
        """As :class:`agit_core.loader.Prefetching`."""
        if isinstance(self._images, Prefetching):
            self._images.forget()
