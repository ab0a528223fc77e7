"""Sampling order of a prepared data set: shuffled as a whole, or in windows."""

from __future__ import annotations

from collections.abc import Mapping

from agit_core.sampling import Domain, SamplePlan
from pipeline import storage
from pipeline.config import Config
from pipeline.data.read.held_out import Rows
from pipeline.records import Manifest

_RESIDENT = 2
"""Windows in memory at a time: the one being read and the one on its way."""


def sample_plan(
    config: Config,
    data_uri: str,
    manifest: Manifest,
    held_out: Mapping[Domain, Rows] | None = None,
) -> SamplePlan:
    """Order of the training images; identical for every worker and after every resume.

    With ``held_out``, the plan covers only the other images: its indices are those of their :class:`Subset`.

    A data set on a local disk, or one that fits ``data.cache_bytes``, is shuffled uniformly. For a larger one in object
    storage that would cost a request per image, so it is shuffled in windows that fill ``data.shuffle_bytes`` (see
    :mod:`agit_core.sampling`), with a request per row group.
    """
    data = config.data
    splits = [manifest.splits[f"train{domain}"] for domain in "AB"]
    if held_out is None:
        length_a, length_b = (split.rows for split in splits)
    else:
        length_a, length_b = len(held_out["a"].trained), len(held_out["b"].trained)
    stored = sum(shard.bytes for split in splits for shard in split.shards)
    windowed = data.shuffle == "windowed" or (
        data.shuffle == "auto" and storage.is_remote(data_uri) and stored > data.cache_bytes
    )
    if not windowed:
        return SamplePlan(config.seed, length_a, length_b, config.train.batch_size)
    each = max(1, stored // max(1, length_a + length_b))
    block = int(manifest.settings["rows_per_group"])
    window = max(1, data.shuffle_bytes // (each * len(splits) * _RESIDENT))
    return SamplePlan(config.seed, length_a, length_b, config.train.batch_size, block, window)


def total_steps(config: Config, plan: SamplePlan) -> int:
    """Number of steps of the run, after which the learning rate is 0."""
    steps = plan.steps(config.train.epochs)
    return min(steps, config.train.max_steps) if config.train.max_steps else steps
