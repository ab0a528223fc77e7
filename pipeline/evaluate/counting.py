"""How many test images there are to score; imports no torch, so that it can be asked before anything is trained."""

from __future__ import annotations

from agit_core.errors import BadInput
from pipeline.config import Config
from pipeline.records import Manifest, Split

MINIMUM = 2
"""As :data:`agit_core.scores.distances.MINIMUM`."""


def count_test_images(config: Config, data_uri: str, manifest: Manifest, domain: str) -> int:
    """How many test images of a domain are scored.

    Raises:
        BadInput: fewer than two.
    """
    split = f"test{domain.upper()}"
    rows = manifest.splits.get(split, Split()).rows
    count = min(rows, config.evaluate.max_images or rows)
    if count < MINIMUM:
        raise BadInput(
            f"{split} of {data_uri} holds {rows} images and scores need at least {MINIMUM}; "
            "add test images or raise data.test_fraction"
        )
    return count
