"""One epoch of one loader in a process of its own: ``python -m tests.benchmarks.loading_one NAME SPEC.json``.

Prints a JSON object: ``images``, ``first_batch_s`` (from opening the data to the first batch), ``images_per_s``
(of everything after the first batch) and ``memory_mb_per_worker`` (what the loader added to this process and
its children, shared pages shared out, over the number of workers).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agit_core.loader import Loader
from agit_core.sampling import SamplePlan
from pipeline.data.reader import ShardImages
from tests.benchmarks import loading_peers


def ours(spec: dict[str, Any]) -> Iterator[tuple[Tensor, ...]]:
    """As in training: half of a batch from each domain; the threads are the peers' workers."""
    cache, room = Path(spec["scratch"]), 8 << 30
    sources: Any = {d: ShardImages(spec["prepared"], f"train{d.upper()}", cache, room) for d in "ab"}
    plan = SamplePlan(0, len(sources["a"]), len(sources["b"]), spec["batch"] // 2)
    loader = Loader(sources, plan, spec["image_size"], threads=spec["workers"])
    for batch in loader.batches(0, range(plan.batch_size), plan.steps(1)):
        yield batch.a, batch.b


PEERS = {
    "imagefolder": loading_peers.imagefolder,
    "imagefolder, fast decoder": loading_peers.imagefolder_fast,
    "webdataset": loading_peers.webdataset,
    "streaming": loading_peers.streaming,
    "datasets": loading_peers.datasets,
}


def measure(name: str, spec: dict[str, Any]) -> dict[str, float]:
    torch.set_num_threads(1)
    before = _memory()
    start = time.perf_counter()
    images, held, first, rest = 0, 0.0, 0.0, 0
    batches = ours(spec) if name == "ours" else ((images,) for images in PEERS[name](spec))
    for batch in batches:
        images += sum(len(part) for part in batch)
        if not first:
            first, rest = time.perf_counter(), images
            assert all(part.dtype == torch.float32 and part.shape[2] == spec["image_size"] for part in batch)
            assert all(-1.0 <= float(part.min()) < float(part.max()) <= 1.0 for part in batch)
        elif not held and images > spec["images"] // 2:
            held = _memory()  # in the middle: at the end the workers are leaving
    end = time.perf_counter()
    return {
        "images": images,
        "first_batch_s": round(first - start, 3),
        "images_per_s": round((images - rest) / (end - first), 1),
        "memory_mb_per_worker": round((held - before) / 2**20 / spec["workers"], 1),
    }


def _memory() -> int:
    """Bytes of this process and its children, pages that several have mapped counted in parts."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    total, left = 0, [os.getpid()]
    while left:
        process = left.pop()
        left += children.get(process, [])
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


if __name__ == "__main__":
    described = json.loads(Path(sys.argv[2]).read_text())
    with tempfile.TemporaryDirectory(prefix="agit-bench-") as scratch:
        print(json.dumps(measure(sys.argv[1], described | {"scratch": scratch})), flush=True)
        os._exit(0)  # some peers wait for their threads for seconds
