"""Training metrics as Ray metrics, which every node of a cluster exports to Prometheus.

They appear with the prefix ``ray_`` and the label ``run_id``, such as ``ray_agit_loss{loss="cycle_a"}``; the alerts and
the dashboard of ``infra/kubernetes/components/monitoring`` read them. Times are Unix seconds: an age is
``time() - ray_agit_last_checkpoint_time_seconds``, which grows also when the training hangs.
"""

from __future__ import annotations

import math
from typing import Any

from ray.util.metrics import Counter, Gauge

GAUGES = {
    "step": "training steps done",
    "total_steps": "where the run ends",
    "images_per_second": "over all workers",
    "learning_rate": "of the generators",
    "last_row_time_seconds": "when the metrics were logged last",
    "last_checkpoint_step": "step of the newest checkpoint of this attempt",
    "last_checkpoint_time_seconds": "when the newest checkpoint was stored; before the first, when the workers started",
}
LABELLED = {"loss": "mean since the last row", "mask": "health of the attention masks"}
COUNTERS = {
    "non_finite_losses": "rows of the metrics with a loss that is no finite number",
    "worker_failures": "failures of workers, pre-emptions not counted",
    "preemptions": "nodes that were left because they were being taken away",
}


class Gauges:
    """Updates the gauges from each logged row of the metrics."""

    def __init__(self, run_id: str, total_steps: int) -> None:
        self._total = total_steps
        self._tags = {"run_id": run_id}
        self._gauges = {name: Gauge(f"agit_{name}", text, ("run_id",)) for name, text in GAUGES.items()}
        self._loss = Gauge("agit_loss", LABELLED["loss"], ("run_id", "loss"))
        self._mask = Gauge("agit_mask", LABELLED["mask"], ("run_id", "figure"))
        self._bad = counter("non_finite_losses")

    def __call__(self, row: dict[str, Any], checkpoint_step: int, checkpoint_time: float) -> None:
        """Export a row and the newest checkpoint's step and Unix time."""
        values = {
            "step": row["step"],
            "total_steps": self._total,
            "images_per_second": row["images_per_s"],
            "learning_rate": row["learning_rate"],
            "last_row_time_seconds": row["time"],
            "last_checkpoint_step": checkpoint_step,
            "last_checkpoint_time_seconds": checkpoint_time,
        }
        for name, value in values.items():
            self._gauges[name].set(value, self._tags)
        for name, value in row["losses"].items():
            self._loss.set(value, {**self._tags, "loss": name})
        for name, value in row["mask_health"].items():
            self._mask.set(value, {**self._tags, "figure": name})
        if not all(map(math.isfinite, row["losses"].values())):
            self._bad.inc(1, self._tags)


def counter(name: str) -> Counter:
    """One of :data:`COUNTERS`, with the label ``run_id``."""
    return Counter(f"agit_{name}", COUNTERS[name], ("run_id",))
