"""One epoch of one loader in a separate process: ``python -m tests.benchmarks.loading_one NAME SPEC.json``.

Prints a JSON object: ``images``, ``first_batch_s`` (from opening the data to the first batch), ``images_per_s``
(of everything after the first batch), ``images_per_core_s`` (images over the processor seconds that all its
processes took, which a busy machine changes little) and ``memory_mb_per_worker`` (what the loader added to this
process and its children, shared pages shared out, over the number of workers).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agit_core.loader import Loader
from agit_core.sampling import SamplePlan
from pipeline.data.read.reader import ShardImages
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
    memory = _tree(_memory)
    start = time.perf_counter()
    images, first, rest, core, half = 0, 0.0, 0, 0.0, 0
    batches = ours(spec) if name == "ours" else ((images,) for images in PEERS[name](spec))
    for batch in batches:
        images += sum(len(part) for part in batch)
        if not first:
            first, rest, core = time.perf_counter(), images, _tree(_seconds)
            assert all(part.dtype == torch.float32 and part.shape[2] == spec["image_size"] for part in batch)
            assert all(-1.0 <= float(part.min()) < float(part.max()) <= 1.0 for part in batch)
        elif not half and images > 0.7 * spec["images"]:  # at the end the workers are leaving
            half, core, memory = images, _tree(_seconds) - core, _tree(_memory) - memory
    end = time.perf_counter()
    return {
        "images": images,
        "first_batch_s": round(first - start, 3),
        "images_per_s": round((images - rest) / (end - first), 1),
        "images_per_core_s": round((half - rest) / core, 1),
        "memory_mb_per_worker": round(memory / 2**20 / spec["workers"], 1),
    }


def _tree(figure: Callable[[Path], float]) -> float:
    """The sum of a figure over this process and its children."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(_fields(stat)[1]), []).append(int(stat.parent.name))
    total, left = 0.0, [os.getpid()]
    while left:
        process = left.pop()
        left += children.get(process, [])
        with contextlib.suppress(OSError):
            total += figure(Path(f"/proc/{process}"))
    return total


def _fields(stat: Path) -> list[str]:
    """From the state on: the name before it may hold anything."""
    return stat.read_text().rsplit(")", 1)[1].split()


def _memory(process: Path) -> float:
    """Bytes, pages that several processes have mapped counted in parts."""
    lines = (process / "smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _seconds(process: Path) -> float:
    """Of the processor, with the children it has waited for."""
    return sum(map(int, _fields(process / "stat")[11:15])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    described = json.loads(Path(sys.argv[2]).read_text())
    with tempfile.TemporaryDirectory(prefix="agit-bench-") as scratch:
        print(json.dumps(measure(sys.argv[1], described | {"scratch": scratch})), flush=True)
    os._exit(0)  # some peers wait for their threads for seconds
