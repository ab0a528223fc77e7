"""How many test images there are to score; imports no torch, so that it can be asked before anything is trained."""

from __future__ import annotations

from typing import Any

from agit_core.errors import BadInput
from pipeline.config import Config

MINIMUM = 2
"""As :data:`agit_core.scores.distances.MINIMUM`."""


def count_test_images(config: Config, data_uri: str, manifest: dict[str, Any], domain: str) -> int:
    """How many test images of a domain are scored.

    Raises:
        BadInput: fewer than two.
    """
    split = f"test{domain.upper()}"
    rows = int(manifest["splits"].get(split, {}).get("rows", 0))
    count = min(rows, config.evaluate.max_images or rows)
    if count < MINIMUM:
        raise BadInput(
            f"{split} of {data_uri} holds {rows} images and scores need at least {MINIMUM}; "
            "add test images or raise data.test_fraction"
        )
    return count
