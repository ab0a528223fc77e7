"""The separate processes of the shard cache's tests; imports little, because each of them has to."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pipeline.data.read.reader import ShardImages


def read_all(uri: str, cache: Path, limit: int, results: Any) -> None:
    """Read every image of trainA, put the sum of their bytes, and wait until all shards are in the cache."""
    images = ShardImages(uri, "trainA", cache, limit)
    results.put(sum(len(images.encoded(i)) for i in range(len(images))))
    deadline = time.monotonic() + 60
    while len(list(cache.glob("*.parquet"))) < len(images._shards):
        assert time.monotonic() < deadline, "a shard did not arrive in time"
        time.sleep(0.02)
