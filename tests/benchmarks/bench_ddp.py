"""Data parallelism: images per second of two single-threaded workers over one, and where the time goes.

Everything runs as a user would run it: the training job with its Ray, shards, checkpoints and reports. Each
worker computes with one thread, whatever the machine has. One worker takes one image per step, two workers
take a global batch of two. Two single workers side by side, which have nothing to do with each other, show
what the machine itself costs (shared caches and memory bandwidth); what two joined workers lose beyond that
is communication.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config import Config, load
from pipeline.data.prepare.stage import prepare
from pipeline.launch import follow
from tests.benchmarks.result import Result, table

KEYS = ("ddp_2_over_1", "data_wait_share", "checkpoint_share")

SIZE = 128
STEPS = 36
EVERY = 4
WARM_UP = 2
"""Rows of the metrics that are left out: the first steps allocate and connect."""


def run() -> Result:
    """Trains alone, as a pair, and as two strangers at once."""
    with tempfile.TemporaryDirectory(prefix="agit-bench-") as name:
        folder = Path(name)
        data_uri = prepare(_config(folder, 1)).uri
        one = _train(_config(folder / "one", 1), data_uri)
        pair = _train(_config(folder / "pair", 2), data_uri)
        with ThreadPoolExecutor(2) as pool:
            configs = [_config(folder / f"stranger{i}", 1) for i in (1, 2)]
            strangers = list(pool.map(lambda config: _train(config, data_uri), configs))
    apart = sum(figures["images_per_s"] for figures in strangers)
    shares = {name: pair[name] for name in ("data_wait_share", "checkpoint_share")}
    over = pair["images_per_s"] / one["images_per_s"]
    rows = [
        ("one worker", one["images_per_s"], 1.0, one["data_wait_share"], one["checkpoint_share"]),
        ("two workers", pair["images_per_s"], over, *shares.values()),
        ("two strangers", apart, apart / one["images_per_s"], None, None),
    ]
    communication = max(0.0, 1 - pair["images_per_s"] / apart)
    lines = table(("", "images/s", "over one", "data wait", "checkpoints"), rows)
    return Result(
        {
            "ddp_2_over_1": round(over, 3),
            "ddp_strangers_over_1": round(apart / one["images_per_s"], 3),
            "ddp_communication_share": round(communication, 4),
            **{name: round(share, 5) for name, share in shares.items()},
        },
        [
            *lines,
            f"communication: {communication:.1%} of the time of two workers",
            f"a checkpoint every {pair['checkpoint_steps']} steps; share of the time that the loop waits for them",
        ],
    )


def _config(folder: Path, workers: int) -> Config:
    """The paper's networks at a quarter of its pixels."""
    settings = {
        "storage": folder,
        "data.source": "builtin",
        "data.image_size": SIZE,
        "data.load_size": SIZE + 16,
        "data.builtin.train": 40,
        "data.builtin.test": 4,
        "data.builtin.size": SIZE + 16,
        "method.stages.switch_at": 1000,
        "method.history.size": 8,
        "train.max_steps": STEPS,
        "train.batch_size": workers,
        "train.workers": workers,
        "train.device": "cpu",
        "train.threads_per_worker": 1,
        "train.prefetch_threads": 1,
        "train.log_every": EVERY,
        "train.samples": 0,
        "train.checkpoint_every": STEPS,
    }
    return load("h2z", [f"{key}={value}" for key, value in settings.items()])


def _train(config: Config, data_uri: str) -> dict[str, Any]:
    result = follow.train(config, data_uri)
    files = storage.list_(storage.join(result.uri, "metrics"))
    rows = [json.loads(line) for uri in sorted(files) for line in storage.read_text(uri).splitlines()]
    seconds = result.result.seconds
    return {
        "images_per_s": statistics.median(row["images_per_s"] for row in rows[WARM_UP:]),
        "data_wait_share": seconds["data_wait"] / seconds["loop"],
        "checkpoint_share": seconds["checkpoint"] / seconds["loop"],
        "checkpoint_steps": config.train.checkpoint_every // 2,
    }
