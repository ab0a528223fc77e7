"""Finished runs with tiny networks, and evaluations, for the tests of the registry."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from agit_core import checkpoint, networks, saved_method
from agit_core.checkpoint import Snapshot
from agit_core.config import MethodConfig, NetworkConfig
from pipeline import storage
from pipeline.records import RESULT, Evaluation, Registration, Result, Rival

METHOD = MethodConfig(
    networks=NetworkConfig(generator_width=4, generator_blocks=1, attention_width=4, discriminator_width=4)
)
Register = Callable[..., Registration]


def evaluation(kid: float = 0.05, nothing: float = 0.2, coverage: float = 0.3, **others: float) -> Evaluation:
    metrics: dict[str, float | None] = {"kid_mean": kid}
    baseline: dict[str, float | None] = {}
    for direction in ("a2b", "b2a"):
        metrics |= {f"kid_target_{direction}": kid, f"kid_mean_{direction}": kid, f"fid_{direction}": 90.0}
        baseline[f"kid_target_{direction}"] = nothing
        metrics[f"attention_coverage_{direction[0]}"] = coverage
        metrics[f"attention_iou_{direction[0]}"] = 0.6
    return Evaluation(
        metrics=metrics | others,
        baseline=baseline,
        champion=None,
        intervals={},
        data={"uri": "data/x", "fingerprint": "abc"},
        inception={"sha256": "7ff4"},
    )


def against(told: Evaluation, version: int, kid: float, verdict: str = "better") -> Evaluation:
    """The same evaluation, which has also scored the champion."""
    champion = Rival(version=version, metrics=told.metrics | {"kid_mean": kid})
    return told.but(champion=champion, intervals={"kid_mean": {"champion": {"verdict": verdict}}})


def make_run(storage_uri: str, run_id: str, seed: int) -> str:
    """A finished run whose weights depend on the seed alone, with curves of two steps."""
    uri = storage.join(storage_uri, "runs", run_id)
    local = Path(os.environ["PYTEST_CHECKPOINTS"]) / run_id
    net = networks.build(METHOD.networks, seed)
    info = {"step": 20, "epoch": 2, "stage": "full", "image_size": 32}
    info["method"] = saved_method.to_dict(METHOD)
    checkpoint.write(local, Snapshot(info, net.state_dict(), {}, {}, {}))
    target = storage.join(uri, "checkpoints", "step-00000020")
    storage.upload_folder(local, target)
    rows = '{"step": 10, "losses": {"cycle_a": 2.0}, "epoch": 0}\n{"step": 20, "losses": {"cycle_a": 1.0}}\n'
    storage.write_text(storage.join(uri, "metrics", "00000020.jsonl"), rows)
    RESULT.write(uri, Result(run_id=run_id, steps=20, checkpoint=target))
    return uri
