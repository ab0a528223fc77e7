from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pipeline import run_status
from pipeline.config import Config
from pipeline.evaluate.feature_cache import Arrays
from pipeline.evaluate.scoring import evaluate
from pipeline.evaluate.shares import Share, compute

pytestmark = pytest.mark.usefixtures("small_inception")


def test_any_number_of_workers_gives_the_same_scores(
    config: Config, run_uri: str, data_uri: str, tmp_path: Path
) -> None:
    """Equal to the bit: an image's batch does not depend on who computes it."""
    model = run_status.model_checkpoint(run_uri)
    assert model is not None
    told, parts = [], []
    for workers in (1, 2, 3, 100):
        # a storage each, so that nothing is found in the cache
        of = config.evaluate.model_copy(update={"batch_size": 3, "workers": workers})
        mine = config.model_copy(update={"storage": str(tmp_path / str(workers)), "evaluate": of})

        def spread(shares: Sequence[Share], mine: Config = mine) -> Iterator[Arrays]:
            parts.append([share.part for share in shares])
            return (compute(mine, data_uri, share) for share in shares)

        evaluation = evaluate(mine, model, data_uri, spread=spread if workers > 1 else None)
        told.append((evaluation.metrics, evaluation.intervals, evaluation.per_image))
    # three batches of the eight images: real ones of both domains and both directions
    assert parts == [[0, 1]] * 4 + [[0, 1, 2]] * 8
    assert told[1:] == told[:1] * 3
