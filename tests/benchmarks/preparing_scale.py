"""Prepares very many small generated images and says what time, memory and bytes they take.

``python -m tests.benchmarks.preparing_scale --images 100000 --storage s3://bucket/prefix``. The figures of
``pipeline/data/SCALE.md`` come from here.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import storage
from pipeline.config import Config, parse
from pipeline.data.prepare import prepare

_PORTION = 1000
_SHARES = {"trainA": 0.49, "trainB": 0.49, "testA": 0.01, "testB": 0.01}
_BROKEN, _COPIED = 5003, 1009
"""Every so many-th file is not an image, or equal to another one."""


def generate(folder: Path, images: int) -> None:
    """JPEG files of 32 to 48 pixels, a thousand to a folder, with copies and broken ones among them."""
    counts = {split: int(images * share) for split, share in _SHARES.items()}
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for _ in pool.map(_generate, _portions(folder, counts)):
            pass


def _portions(folder: Path, counts: dict[str, int]) -> Iterator[tuple[Path, str, int, int]]:
    for split, count in counts.items():
        for start in range(0, count, _PORTION):
            yield folder / split / f"{start // _PORTION:05d}", split, start, min(start + _PORTION, count)


def _generate(portion: tuple[Path, str, int, int]) -> None:
    folder, split, start, stop = portion
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, stop):
        draw = np.random.default_rng([*split.encode(), i - 1 if i % _COPIED == 1 else i])
        width, height = draw.integers(32, 49, 2)
        coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        path = folder / f"{i:07d}.jpg"
        if i % _BROKEN == 5:
            path.write_bytes(b"not an image")
        else:
            coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC).save(path, quality=90)


def settings(source: Path, store: str, workers: int, shard_bytes: int = 8 << 20) -> Config:
    data = {"source": str(source), "image_size": 32, "load_size": 36, "workers": workers}
    return parse({"name": "scale", "storage": store, "data": {**data, "shard_bytes": shard_bytes}})


def figures(config: Config) -> dict[str, Any]:
    """Prepares (again) and measures; peaks are this process's and its largest child's, MiB."""
    start = time.perf_counter()
    at: list[tuple[float, str]] = []
    made = prepare(config, lambda e: at.append((time.perf_counter() - start, str(e["message"]))))
    end = time.perf_counter() - start
    first = next((t for t, message in at if not message), end)
    compared = next((t for t, message in at if message == "looking for duplicates"), end)
    totals, copies = made.manifest["totals"], made.manifest["duplicates"]
    indexes = sum(split["index"]["bytes"] for split in made.manifest["splits"].values())
    return {
        "uri": made.uri,
        "images": totals["images"],
        "quarantined": totals["quarantined"],
        "exact_groups": copies["exact_groups"],
        "near_groups": copies["near_groups"],
        "shards": totals["shards"],
        "shard_bytes": totals["bytes"],
        "manifest_bytes": storage.size(storage.join(made.uri, "manifest.json")),
        "index_bytes_per_image": round(indexes / totals["images"], 1),
        "kept": made.manifest["kept"],
        "listing_s": round(first, 1),
        "encoding_s": round(compared - first, 1),
        "finding_copies_and_index_s": round(end - compared, 1),
        "images_per_s": round(totals["files_in"] / end, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak_mb_of_a_worker": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--source", type=Path, help="where the generated images are kept; default: nowhere")
    parser.add_argument("--storage", help="folder or s3:// prefix; default: a temporary folder")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agit-scale-") as folder:
        source = options.source or Path(folder) / "in"
        if not source.exists():
            generate(source, options.images)
        config = settings(source, options.storage or f"{folder}/out", options.workers)
        print(json.dumps(found := figures(config), indent=1), flush=True)
        from pipeline.data.reader import ShardImages  # torch would count in the memory of the workers

        start = time.perf_counter()
        reader = ShardImages(found["uri"], "trainA", Path(folder) / "cache", 0)
        opened = time.perf_counter() - start
        print(json.dumps({"open_a_split_s": round(opened, 2), "first": tuple(reader.read(0).shape)}))
        if options.source is None:
            shutil.rmtree(source)


if __name__ == "__main__":
    main()
