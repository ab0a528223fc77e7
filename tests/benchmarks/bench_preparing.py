"""Preparation against the loop that people write (open, convert, resize, save); one worker, two, and Ray tasks."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.config import parse
from pipeline.data.prepare.stage import prepare
from pipeline.data.sources import builtin
from tests.benchmarks.result import Result, table
from tests.ray_environment import own_ray, without_token

KEYS = ("prepare_over_pillow_loop",)


def run(images: int = 1000, repeats: int = 3) -> Result:
    """Images per second of JPEG files of 400 x 300 pixels, made into 286 x 286; the best of each counts.

    Ours also hashes, compares, checks and shards what it reads, and starts its processes within the time; Ray
    is started before.
    """
    rates = {
        "plain Pillow loop": 0.0,
        "ours, 1 worker": 0.0,
        "ours, 2 workers": 0.0,
        "ours, 2 Ray tasks": 0.0,
    }
    with tempfile.TemporaryDirectory(prefix="agit-bench-") as folder:
        root = Path(folder)
        source = _photographs(root / "in", images)
        ways: tuple[Callable[[Path], float], ...] = (
            lambda out: _loop(source, out),
            lambda out: _prepare(source, out, 1),
            lambda out: _prepare(source, out, 2),
        )
        for _ in range(repeats):
            for name, way in zip(rates, ways, strict=False):
                rates[name] = max(rates[name], way(root / "out"))
                shutil.rmtree(root / "out")
        with _ray():  # last: it takes processor time while it is idle, too
            for _ in range(repeats):
                rate = _prepare(source, root / "out", 2, {"RAY_ADDRESS": "the one that is connected"})
                rates["ours, 2 Ray tasks"] = max(rates["ours, 2 Ray tasks"], rate)
                shutil.rmtree(root / "out")
    plain, one, two, tasks = rates.values()
    return Result(
        {
            "prepare_over_pillow_loop": round(one / plain, 3),
            "prepare_two_over_one": round(two / one, 3),
            "prepare_processes_over_ray_tasks": round(two / tasks, 3),
            "prepare_images_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        },
        table(("preparing", "images/s", "over the loop"), [(n, r, r / plain) for n, r in rates.items()]),
    )


def _photographs(root: Path, images: int) -> Path:
    """As cameras and crawlers leave them."""
    for split, count in (("trainA", images), ("trainB", images), ("testA", 2), ("testB", 2)):
        (root / split).mkdir(parents=True)
        for i in range(count):
            drawn = builtin.draw(0, split[:-1], split[-1].lower(), i, 300).image
            Image.fromarray(drawn).resize((400, 300)).save(root / split / f"{i:05d}.jpg", quality=90)
    return root


def _loop(source: Path, target: Path) -> float:
    paths = sorted(source.rglob("*.jpg"))
    start = time.perf_counter()
    for path in paths:
        there = target / path.relative_to(source)
        there.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(path).convert("RGB").resize((286, 286), Image.Resampling.BICUBIC)
        image.save(there, quality=95, subsampling=0)
    return len(paths) / (time.perf_counter() - start)


def _prepare(source: Path, target: Path, workers: int, env: dict[str, str] | None = None) -> float:
    tree: dict[str, Any] = {"name": "bench", "storage": str(target)}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        for key, value in (env or {}).items():
            patch.setenv(key, value)
        start = time.perf_counter()
        made = prepare(parse(tree | {"data": {"source": str(source), "workers": workers}}))
        return int(made.manifest.totals["images"]) / (time.perf_counter() - start)


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        without_token(patch)
        patch.setenv("RAY_worker_register_timeout_seconds", "300")
        own_ray(2)
        try:
            yield
        finally:
            ray.shutdown()
