"""Strips of the best and the worst translations, for the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from agit_core import preview
from agit_core.augment import to_float
from agit_core.networks import Networks
from pipeline import storage
from pipeline.evaluate.scored_images import Domain

EACH_END = 4
"""Number of pictures of the best, and of the worst, translations per direction."""


def keep_extremes(
    uri: str,
    rows: list[dict[str, Any]],
    networks: Networks,
    domains: dict[str, Domain],
    device: torch.device,
    progress: Callable[[int], None],
) -> None:
    """Write ``{uri}/{direction}-{index:05d}.png`` and record the name in the rows' ``strip``.

    A strip is [real | attention | translated | reconstructed], as for samples during training. Pictures of an earlier
    evaluation are removed.
    """
    for old in storage.list_(uri):
        storage.remove(old)
    for direction in ("a2b", "b2a"):
        scored = [row for row in rows if row["direction"] == direction and row["score"] is not None]
        scored.sort(key=lambda row: row["score"])
        chosen = {row["index"]: row for row in [*scored[:EACH_END], *scored[-EACH_END:]]}
        if not chosen:
            continue
        batch = domains[direction[0]].test.batch(list(chosen))
        strips = preview.strips(networks, to_float(batch.images.to(device)), direction).cpu()
        for row, strip in zip(chosen.values(), strips, strict=True):
            row["strip"] = f"{direction}-{row['index']:05d}.png"
            storage.write_bytes(storage.join(uri, row["strip"]), preview.png(strip))
        progress(len(chosen))
