"""Validation images: a share of the training images that no step sees, to score checkpoints with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pipeline.data.sources.folders import content_md5
from pipeline.data.sources.source import Entry, Source

_HASHING = 8
_FEWEST = 2
"""As many as a distance between two sets needs."""


def with_validation(source: Source, fraction: float) -> Source:
    """The source with a share of its training images as splits ``valA`` and ``valB``; 0 changes nothing.

    The contents decide, as they do for test images, but by another half of the MD5, so that the two choices are
    independent. Copies of one picture stay on the same side, and a copy of a test image is not held out: it would let
    the test set choose the checkpoint.
    """
    if not fraction:
        return source
    splits = dict(source.splits)
    for domain in "AB":
        train, test = splits[f"train{domain}"], splits[f"test{domain}"]
        with ThreadPoolExecutor(_HASHING) as pool:
            digests = dict(zip((entry.name for entry in train), pool.map(content_md5, train), strict=True))
            tested = set(pool.map(content_md5, test))

        def rank(entry: Entry, digests: dict[str, str] = digests) -> int:
            return int(digests[entry.name][16:], 16)

        ranked = sorted(
            (entry for entry in train if digests[entry.name] not in tested),
            key=lambda entry: (rank(entry), entry.name),
        )
        held = [entry for entry in ranked if rank(entry) < fraction * 2**64]
        if len(held) < _FEWEST:
            held = ranked[: min(_FEWEST, len(train) - 1)]
        names = {entry.name for entry in held}
        splits[f"train{domain}"] = [entry for entry in train if entry.name not in names]
        splits[f"val{domain}"] = sorted(held, key=lambda entry: entry.name)
    return replace(source, splits=splits)
