"""What a training leaves in its run's folder: rows, progress, samples, checkpoints, events. On rank 0 only."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from typing import Any

import torch

from agit_core.checkpoint import Snapshot
from agit_core.errors import RunFailed
from agit_core.trainer import MeanFigures, StepResult, Trainer
from pipeline import records, storage
from pipeline.records import Result
from pipeline.train import events, lease, scored
from pipeline.train.background_writer import Progress, Saver
from pipeline.train.outputs import Samples, sample_files, scores
from pipeline.train.profile import StepProfile
from pipeline.train.prometheus import Gauges
from pipeline.train.setup import Setup

log = logging.getLogger("pipeline.train.worker")

_LIVE_ROWS = 100
"""Most rows in ``progress.json``, for displays of a running training (:mod:`pipeline.live`)."""


class Bookkeeping:
    """Records the course of a training in the background; does nothing that other ranks would have to join."""

    def __init__(self, setup: Setup, trainer: Trainer, nodes: int) -> None:
        """Record the start of an attempt.

        Args:
            trainer: restored to where the attempt begins.
            nodes: number of nodes with workers.
        """
        spec, config = setup.spec, setup.config
        self._setup, self._run_uri, self._first = setup, spec.run_uri, trainer.step
        self._started = time.time()
        self._rows: list[dict[str, Any]] = []
        self._logged = (time.perf_counter(), trainer.step)
        """Time and step of the previous row, for the speed."""
        self._samples: Samples | None = None
        # a private Ray instance exports no metrics
        self._gauges = Gauges(spec.run_id, setup.end) if setup.on_cluster else None
        profiled = config.train.profile
        self._profile = StepProfile(profiled, spec.run_uri, setup.device) if profiled else None
        self._furthest = events.Furthest(spec.run_uri)
        self._record_start(trainer.step, nodes)
        self._furthest.step = trainer.step
        # the weights and Adam's two means
        setup.store.check_room(3 * sum(t.nbytes for t in trainer.networks.state_dict().values()))
        self._saver = Saver(setup.store, config.train.storage_patience_s, lambda: lease.check(spec))
        self._progress = Progress(
            spec.run_uri,
            self._saver,
            setup.plan.batch_size,
            state="running",
            step=trainer.step,
            total_steps=setup.total,
            epoch=setup.plan.epoch_of(trainer.step),
            stage=trainer.stages.stage.value,
            resumed_from=trainer.step,
            workers=setup.world.size,
            attempt=spec.attempt,
            message="",
        )

    def close(self, step: int) -> None:
        self._saver.close()
        self._progress.close(step=step, rows=[])

    def entered(self, step: int) -> None:
        """The loop (re)starts after this step."""
        self._logged = (time.perf_counter(), step)

    def before_step(self, step: int) -> None:
        if self._profile is not None:
            self._profile.before(step)

    def after_step(self, result: StepResult) -> None:
        if self._profile is not None and (files := self._profile.after(result.step)):
            self._saver.put(files)
        self._saver.check()
        self._furthest.step = result.step
        self._progress.update(step=result.step, epoch=result.epoch, stage=result.stage.value)
        if result.switched:
            self.event("switched", step=result.step - 1)

    def event(self, kind: str, message: str = "", *, step: int) -> None:
        """Store an event, and show its message as the run's."""
        self._saver.put(events.as_file(self._run_uri, kind, message, step=step))
        if message:
            self.show(message)

    def show(self, message: str) -> None:
        """Set the run's message."""
        self._saver.check()
        self._progress.update(message=message)

    def row(
        self, result: StepResult, rate: float, window: MeanFigures, epochs: list[tuple[int, MeanFigures]]
    ) -> None:
        """Add a row of the metrics.

        Args:
            rate: learning rate.
            window: means since the previous row.
            epochs: epochs that ended since then, with their means.
        """
        now, (then, before) = time.perf_counter(), self._logged
        self._logged = (now, result.step)
        images = (result.step - before) * self._setup.plan.batch_size
        row: dict[str, Any] = {
            "step": result.step,
            "epoch": result.epoch,
            "stage": result.stage.value,
            "learning_rate": rate,
            "losses": window.losses,
            "mask_health": window.mask_health,
            "images_per_s": round(images / max(now - then, 1e-9), 2),
            "time": time.time(),
        }
        if self._setup.device.type == "cuda":
            row["gpu_memory_gb"] = round(torch.cuda.max_memory_allocated(self._setup.device) / 2**30, 3)
        if epochs:
            row["epochs"] = [{"epoch": epoch, "mask_health": means.mask_health} for epoch, means in epochs]
        self._rows.append(row)
        log.info("step %d of %d", result.step, self._setup.total, extra={"fields": row})
        if self._gauges is not None:
            self._gauges(row, self._saver.last_stored, self._saver.last_stored_at or self._started)
        self._progress.update(
            losses=window.losses, mask_health=window.mask_health, rows=self._rows[-_LIVE_ROWS:]
        )

    def sample(self, trainer: Trainer) -> None:
        """Draw and store the sample strips."""
        config = self._setup.config
        if self._samples is None:
            self._samples = Samples(
                {d: self._setup.images(f"test{d.upper()}") for d in "ab"},
                config.train.samples,
                config.method.networks,
                config.seed,
                self._setup.device,
            )
        strips = self._samples.draw(trainer.networks.state_dict() | trainer.averaged)
        self._saver.put(sample_files(strips, self._run_uri, trainer.step))

    def catch_up(self) -> None:
        """Wait until the previous checkpoint is stored."""
        self._saver.catch_up()

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Store a snapshot, and before it the rows up to it."""
        info = snapshot.info | {"run_id": self._setup.spec.run_id, "scores": scores(self._rows)}
        self._saver.put(self._rows_file(snapshot.info["step"]), dataclasses.replace(snapshot, info=info))

    def drain(self) -> None:
        """Wait until everything is stored."""
        self._saver.drain()

    def diverged(self, step: int, reason: str) -> None:
        """Store the rows up to a divergence, and its event."""
        self._saver.put(self._rows_file(step) | events.as_file(self._run_uri, "diverged", reason, step=step))
        self._saver.drain()

    def rolled_back(self, step: int, message: str) -> None:
        forget_later_steps(self._setup, step)
        self.event("rolled_back", message, step=step)
        self._progress.update(step=step)

    def result(self, trainer: Trainer, figures: MeanFigures | None, seconds: dict[str, float]) -> Result:
        """The result of the finished training; ``seconds``: of the loop and of its parts."""
        self._furthest.remove()
        setup, step, best = self._setup, trainer.step, self._setup.store.best()
        pictures = storage.list_(records.sample_folder(self._run_uri, step))
        images = (step - self._first) * setup.plan.batch_size
        return Result(
            run_id=setup.spec.run_id,
            steps=step,
            total_steps=setup.total,
            epoch=setup.plan.epoch_of(step - 1),
            stage=trainer.stages.stage.value,
            switched_at_step=trainer.stages.switched_at_step,
            checkpoint=setup.store.folder(step),
            best_checkpoint=None if best is None else setup.store.folder(best),
            samples=[uri for uri in pictures if uri.endswith(".png")],
            losses=dict(figures.losses) if figures else {},
            mask_health=dict(figures.mask_health) if figures else {},
            workers=setup.world.size,
            device=setup.device.type,
            resumed_from=self._first,
            rollbacks=trainer.rollbacks,
            stopped_early=step < setup.end,
            images_per_s=round(images / max(seconds["loop"], 1e-9), 2),
            seconds={part: round(value, 3) for part, value in seconds.items()},
        )

    def _rows_file(self, step: int) -> dict[str, bytes]:
        """The rows since the last checkpoint as a file to write: URI -> content."""
        rows, self._rows = self._rows, []
        name = storage.join(self._run_uri, records.METRICS, f"{step:08d}.jsonl")
        return {name: "".join(map(storage.json_line, rows)).encode()} if rows else {}

    def _record_start(self, step: int, nodes: int) -> None:
        with contextlib.suppress(RunFailed):
            if not events.read(self._run_uri):
                self._furthest.step = 0  # stale: of an earlier run whose folder was removed
        before = self._furthest.step
        with contextlib.suppress(RunFailed):
            if (last := records.PROGRESS.peek(self._run_uri)) is not None:
                before = max(before, last.step or 0)
        events.record(
            self._run_uri,
            "resumed" if step or before else "started",
            step=step,
            redone=max(0, before - step),
            workers=self._setup.world.size,
            nodes=nodes,
        )


def forget_later_steps(setup: Setup, step: int) -> None:
    """Remove the metric rows and scores of steps that will be repeated."""
    run_uri = setup.spec.run_uri
    setup.patiently(lambda: _remove_rows_after(run_uri, step))
    setup.patiently(lambda: scored.remove_after(run_uri, step))


def _remove_rows_after(run_uri: str, step: int) -> None:
    for uri in storage.list_(storage.join(run_uri, records.METRICS)):
        stem = storage.name(uri).removesuffix(".jsonl")
        if stem.isdigit() and int(stem) > step:
            storage.remove(uri)
