"""Prepares very many small generated images and says what time, memory and bytes they take.

``python -m tests.benchmarks.preparing_scale --images 100000 --storage s3://bucket/prefix``. The figures of
``pipeline/data/SCALE.md`` come from here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infra.stack_state import free_port
from pipeline import storage
from pipeline.config import Config, parse
from pipeline.data.prepare.stage import prepare
from tests.pipeline.s3 import S3Server

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
    worker = 0

    def note(event: dict[str, Any]) -> None:
        nonlocal worker
        at.append((time.perf_counter() - start, str(event["message"])))
        if len(at) % 20 == 0:
            worker = max(worker, *_children_peak_kib(), 0)

    made = prepare(config, note)
    end = time.perf_counter() - start
    first = next((t for t, message in at if not message), end)
    compared = next((t for t, message in at if message == "looking for duplicates"), end)
    totals, copies = made.manifest.totals, made.manifest.duplicates
    indexes = sum(split.index.bytes for split in made.manifest.splits.values() if split.index)
    return {
        "uri": made.uri,
        "images": totals["images"],
        "quarantined": totals["quarantined"],
        "exact_groups": copies.exact_groups,
        "near_groups": copies.near_groups,
        "shards": totals["shards"],
        "shard_bytes": totals["bytes"],
        "manifest_bytes": storage.size(storage.join(made.uri, "manifest.json")),
        "index_bytes_per_image": round(indexes / totals["images"], 1),
        "kept": made.manifest.kept,
        "listing_s": round(first, 1),
        "encoding_s": round(compared - first, 1),
        "finding_copies_and_index_s": round(end - compared, 1),
        "images_per_s": round(totals["files_in"] / end, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak_mb_of_a_worker": round(worker / 1024),
    }


def _children_peak_kib() -> list[int]:
    """Peaks of the processes that this one started; rusage would count this one's, at the fork."""
    peaks = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError, KeyError, ValueError):
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            if int(lines["PPid"]) == os.getpid():
                peaks.append(int(lines["VmHWM"].split()[0]))
    return peaks


def epoch(uri: str, window_bytes: int, cache: Path) -> dict[str, Any]:
    """Reads one epoch in windows from object storage; nothing is cached on the disk."""
    import torch  # only now: it would count in the memory of the preparing workers

    from agit_core.loader import Loader
    from pipeline.data.format import manifest
    from pipeline.data.read.reader import ShardImages
    from pipeline.data.read.sample_order import sample_plan

    torch.set_num_threads(1)
    described = manifest.read(uri)
    tree = {"name": "scale", "train": {"batch_size": 16}}
    data = {"image_size": 32, "load_size": 36, "cache_bytes": 0, "shuffle_bytes": window_bytes}
    plan = sample_plan(parse(tree | {"data": data}), uri, described)
    requests = 0
    real = storage.read_range

    def counted(uri: str, start: int, length: int) -> bytes:
        nonlocal requests
        requests += 1
        return real(uri, start, length)

    storage.read_range = counted
    before = _resident()
    start = time.perf_counter()
    sources: Any = {d: ShardImages(uri, f"train{d.upper()}", cache, 0, plan.block) for d in "ab"}
    opened = time.perf_counter() - start
    images, most = 0, 0
    for batch in Loader(sources, plan, 32).batches(0, range(16), plan.steps(1)):
        images += len(batch.a) + len(batch.b)
        if batch.step % 50 == 0:
            most = max(most, _resident())
    seconds = time.perf_counter() - start
    first, second = (
        [
            i.index
            for s in range(e * plan.steps(1), (e + 1) * plan.steps(1))
            for i in plan.items(s, "a", range(16))
        ]
        for e in range(2)
    )
    place = np.argsort(first[: plan.length_a])
    again = (
        np.argsort(second[: plan.length_a]) if len(set(second[: plan.length_a])) == plan.length_a else place
    )
    return {
        "window_images_per_domain": plan.window,
        "block": plan.block,
        "epoch_images": images,
        "epoch_requests": requests,
        "images_per_request": round(images / requests, 1),
        "images_per_s": round(images / seconds, 1),
        "open_s": round(opened, 2),
        "grown_mb": round((most - before) / 2**20, 1),
        "correlation_with_stored_order": round(float(np.corrcoef(place, np.arange(len(place)))[0, 1]), 4),
        "correlation_with_next_epoch": round(float(np.corrcoef(place, again)[0, 1]), 4),
        "batches_with_two_images_of_a_block": round(_together(first, plan.block), 4),
    }


def _together(order: list[int], block: int) -> float:
    batches = [order[i : i + 16] for i in range(0, len(order), 16)]
    return sum(len({i // block for i in batch}) < len(batch) for batch in batches) / len(batches)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--source", type=Path, help="where the generated images are kept; default: nowhere")
    parser.add_argument("--storage", help="folder or s3:// prefix; default: a temporary folder")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epoch", action="store_true", help="also read an epoch from an S3 server")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agit-scale-") as folder:
        source = options.source or Path(folder) / "in"
        if not source.exists():
            generate(source, options.images)
        config = settings(source, options.storage or f"{folder}/out", options.workers)
        print(json.dumps(found := figures(config), indent=1), flush=True)
        if options.epoch:
            server = S3Server(root=Path(folder) / "s3", port=free_port())
            server.root.mkdir()
            server.start()
            os.environ.update(server.env)
            try:
                storage.upload_folder(found["uri"], f"{server.uri}/scale")
                print(json.dumps(epoch(f"{server.uri}/scale", 16 << 20, Path(folder) / "cache"), indent=1))
            finally:
                server.stop()


if __name__ == "__main__":
    main()
