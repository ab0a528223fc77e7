"""Training metrics as Ray metrics, which every node of a cluster exports to Prometheus.

They appear as ``ray_agit_step``, ``ray_agit_images_per_second``, ``ray_agit_learning_rate``,
``ray_agit_loss{loss="cycle_a"}`` and ``ray_agit_mask{figure="coverage_a"}``, each with ``run_id``.
"""

from __future__ import annotations

from typing import Any

from ray.util.metrics import Gauge


class Gauges:
    """Updates the gauges from each logged row of the metrics."""

    def __init__(self, run_id: str) -> None:
        self._tags = {"run_id": run_id}
        self._step = self._gauge("step", "training steps done")
        self._speed = self._gauge("images_per_second", "over all workers")
        self._rate = self._gauge("learning_rate", "of the generators")
        self._loss = self._gauge("loss", "mean since the last row", "loss")
        self._mask = self._gauge("mask", "health of the attention masks", "figure")

    def __call__(self, row: dict[str, Any]) -> None:
        self._step.set(row["step"], self._tags)
        self._speed.set(row["images_per_s"], self._tags)
        self._rate.set(row["learning_rate"], self._tags)
        for name, value in row["losses"].items():
            self._loss.set(value, {**self._tags, "loss": name})
        for name, value in row["mask_health"].items():
            self._mask.set(value, {**self._tags, "figure": name})

    @staticmethod
    def _gauge(name: str, description: str, *tags: str) -> Gauge:
        return Gauge(f"agit_{name}", description, ("run_id", *tags))
