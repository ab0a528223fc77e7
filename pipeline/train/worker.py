"""The Ray Train worker: the loop around the trainer, on each rank's slice of the batch.

Rank 0 also keeps the books (:mod:`pipeline.train.bookkeeping`). What is marked as collective must be called on all
ranks at the same step.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from agit_core.checkpoint import Snapshot
from agit_core.errors import Diverged
from agit_core.loader import Batch
from agit_core.trainer import MeanFigures, StepResult
from pipeline import logs, records, storage
from pipeline.records import Result, Spec
from pipeline.train import events, lease, scored
from pipeline.train.bookkeeping import Bookkeeping, forget_later_steps
from pipeline.train.failures import Preempted
from pipeline.train.outputs import CollapsedMask, MaskWatch, faint_at_switch
from pipeline.train.reading import start_model
from pipeline.train.setup import Setup

_SCORES_SECONDS = 0.5
"""Interval between checks for the scores that early stopping waits for."""
_PREEMPTION_SECONDS = 2.0
"""Interval between checks for preempted nodes; spot nodes give as little as 25 s notice."""
_MOST_STEPS_UNSEEN = 200


def train(loop: dict[str, Any]) -> Result | None:
    """Train from the newest complete checkpoint to the end.

    Args:
        loop: ``spec`` (see :mod:`pipeline.launch.specs`) and ``on_cluster``.

    Returns:
        The run's result on rank 0; None on other ranks.
    """
    # code that is compiled and loaded again: PyTorch's own choice is a folder in /tmp with a name known to everybody
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(storage.private_folder("agit-compiled")))
    return _Worker(loop["spec"], loop["on_cluster"]).run()


class _Worker:
    def __init__(self, spec: Spec, on_cluster: bool) -> None:
        _silence_reports()
        if logs.as_json():
            logs.set_up()
        logs.bind(run_id=spec.run_id, rank=ray.train.get_context().get_world_rank())
        self.setup = Setup.of(spec, on_cluster)
        self.config, self.world = self.setup.config, self.setup.world
        self.trainer = self.setup.trainer()
        self.books: Bookkeeping | None = None
        # twice as often as configured, one at a time: even a kill during a slow upload then loses at most one
        # configured interval
        self.checkpoint_every = max(1, self.config.train.checkpoint_every // 2)
        self.checkpointed = -1
        """Step of the last checkpoint."""
        self.checked = (0.0, 0)
        """Time and step of the last check for preempted nodes."""
        self.check_at = 0
        """Step of the next one."""
        self.window: MeanFigures | None = None
        """Means since the previous row."""
        self.epochs: list[tuple[int, MeanFigures]] = []
        """Epochs that ended in the window, with their means."""
        self.mask_watch = MaskWatch()
        self.seconds = {"loop": 0.0, "data_wait": 0.0, "checkpoint": 0.0, "sample": 0.0, "score_wait": 0.0}

    # ------------------------------------------------------------------ the loop

    def run(self) -> Result | None:
        """Restore the run's state and train to the end."""
        self._restore()
        nodes = self.world.gather(ray.get_runtime_context().get_node_id())
        if nodes is None:
            self._train()
            return None
        forget_later_steps(self.setup, self.trainer.step)
        books = self.books = Bookkeeping(self.setup, self.trainer, len(set(nodes)))
        try:
            self._train()
            books.drain()
        finally:
            books.close(self.trainer.step)
        return books.result(self.trainer, self.window, self.seconds)

    def _train(self) -> None:
        """Run the loop; after a divergence, restart it from an earlier checkpoint as ``train.rollbacks`` allows."""
        with self._timed("loop"):
            done = False
            while not done:
                step = self.trainer.step
                self.checked, self.check_at = (time.perf_counter(), step), step + 1
                if self.books is not None:
                    self.books.entered(step)
                if self._stops_early(step):  # killed after it had decided so
                    break
                with contextlib.closing(
                    self.setup.loader.batches(step, self.trainer.slots, self.setup.end)
                ) as batches:
                    try:
                        self._loop(batches)
                        done = True
                    except Diverged as error:
                        reason = str(error)
                if not done:
                    self._roll_back(reason)

    def _loop(self, batches: Iterator[Batch]) -> None:
        train, every = self.config.train, self.setup.score_every
        while (batch := self._next(batches)) is not None:
            if self.books is not None:
                self.books.before_step(self.trainer.step)
            result = self.trainer.train_on(batch)
            logs.bind(step=result.step)
            if self.books is not None:
                self.books.after_step(result)
            last = result.step == self.setup.end
            scored_here = every is not None and result.step % every == 0
            stores = result.step % self.checkpoint_every == 0 or last or scored_here
            # also before each checkpoint, so that the rows of a resumed run match those of an uninterrupted one
            due = result.step % train.log_every == 0 or stores
            if due:
                self._log(result)
                self._watch_masks(result.step)
            if self.books is not None and train.samples and (result.step % train.sample_every == 0 or last):
                with self._timed("sample"):
                    self.books.sample(self.trainer)
            if stores:
                self._checkpoint()
            if not last and self._stops_early(result.step):
                break
            if not last and self._preempted(result.step):
                if not due:
                    self._log(result)
                self._save_before_leaving()
                raise Preempted("a node of the training is being taken away")

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        with self._timed("data_wait"):
            return next(batches, None)

    def _log(self, result: StepResult) -> None:
        """Take the means since the previous row. Collective."""
        self.window, self.epochs = self.trainer.window(), self.trainer.ended_epochs()
        if self.books is not None:
            self.books.row(result, self.trainer.learning_rate, self.window, self.epochs)
        self.trainer.check_losses(self.window)

    def _watch_masks(self, step: int) -> None:
        """Warn of faint and collapsed masks; end the run where ``train.stop_on_collapse`` says so. Collective."""
        if not self.config.method.networks.has_attention or self.window is None:
            return
        health, switched = self.window.mask_health, self.trainer.stages.switched_at_step
        just_switched = switched is not None and step - self.window.steps <= switched < step
        faint = faint_at_switch(health) if just_switched else None
        collapsed = self.mask_watch(self.window, self.epochs, step)
        if self.books is not None:
            if not self.mask_watch.alarmed:
                self.books.show("")
            for kind, message in (("mask_faint", faint), ("mask_collapsed", collapsed)):
                if message is not None:
                    self.books.event(kind, message, step=step)
        if collapsed is not None and self.config.train.stop_on_collapse and step < self.setup.end:
            # keep the curves and a state to resume from
            self._save_before_leaving()
            raise CollapsedMask(
                f"{collapsed}; lower method.optimizer.attention_learning_rate or switch stages earlier "
                "(method.stages.switch_at), or continue anyway with train.stop_on_collapse=false"
            )

    def _checkpoint(self) -> None:
        """Collective."""
        with self._timed("checkpoint"):
            if self.books is not None:
                self.books.catch_up()
            snapshot = self.trainer.snapshot()
            if self.books is not None and snapshot is not None:
                self.books.checkpoint(snapshot)
            ray.train.report(
                {"step": self.trainer.step, "epoch": self.setup.plan.epoch_of(self.trainer.step)}
                | (self.window.losses if self.window else {})
            )
            self.checkpointed = self.trainer.step

    def _roll_back(self, reason: str) -> None:
        """Return to the newest checkpoint, or to the start, at half the learning rate. Collective.

        The number of rollbacks is part of a checkpoint, so a killed run repeats the same course.

        Raises:
            Diverged: ``train.rollbacks`` is exhausted.
        """
        allowed, count = self.config.train.rollbacks, self.trainer.rollbacks + 1
        if self.books is not None:
            self.books.diverged(self.trainer.step, reason)
        self._wait_for_all()
        if count > allowed:
            way_out = "or let train.rollbacks return to the last checkpoint at half the rate"
            raise Diverged(f"{reason}, {f'as {allowed} rollbacks did not help' if allowed else way_out}")
        self.epochs, self.window, self.checkpointed = [], None, -1
        self.mask_watch = MaskWatch()
        del self.trainer  # first, because a GPU may lack the memory for two
        self.trainer = self.setup.trainer()
        self._restore()
        self.trainer.rollbacks = count
        if self.books is not None:
            message = f"went back at {0.5**count:.3g} times the learning rate ({count} of {allowed} times)"
            self.books.rolled_back(self.trainer.step, message)

    def _stops_early(self, step: int) -> bool:
        """Whether ``validation.early_stopping`` ends the run after this step. Collective where the step is scored.

        The scores of the steps before this one decide, and it waits for them: the result must not depend on how fast
        they come, and scoring has the time of a whole interval.
        """
        patience, every = self.config.validation.early_stopping, self.setup.score_every
        if patience is None or every is None or not step or step % every:
            return False
        metric, run_uri = str(self.config.deciding_score), self.setup.spec.run_uri
        needed = set(scored.due(every, step - every))
        with self._timed("score_wait"):
            while self._agreed(
                self.books is not None
                and not self.setup.patiently(lambda: needed <= records.scored_steps(run_uri))
            ):
                if self.books is not None:
                    self.books.show("waiting for the scores of earlier checkpoints")
                time.sleep(_SCORES_SECONDS)
        stop = False
        if self.books is not None:
            all_scores = self.setup.patiently(lambda: records.read_scores(run_uri))
            known = {at: one for at, one in all_scores.items() if at in needed}
            stop = scored.hopeless(known, metric, patience)
            if stop:
                best = scored.best(known, metric)
                reason = f"no {metric} better than that of step {best} in {patience} scores"
                self.books.event("stopped_early", reason, step=step)
        return self._agreed(stop)

    def _agreed(self, here: bool) -> bool:
        """Whether it is true on any rank. Collective."""
        return bool(self.world.sum(torch.tensor([float(here)])))

    def _preempted(self, step: int) -> bool:
        """Whether a node is about to be preempted; also sets the step of the next check. Collective when due.

        Each check is a barrier of all workers, so rank 0's clock decides the number of steps between them.
        """
        if not self.setup.on_cluster or step < self.check_at:
            return False
        if ray.train.get_preemption_info() is not None:
            return True
        now, (then, before) = time.perf_counter(), self.checked
        self.checked = (now, step)
        steps = _PREEMPTION_SECONDS * (step - before) / max(now - then, 1e-9)
        steps = min(max(steps, 1), _MOST_STEPS_UNSEEN) if self.world.rank == 0 else 0
        self.check_at = step + int(self.world.sum(torch.tensor(int(steps))))
        return False

    # ------------------------------------------------------------------ state

    def _save_before_leaving(self) -> None:
        """Store everything before an error ends the job. Collective."""
        if self.checkpointed != self.trainer.step:  # saving again would first remove the stored one
            self._checkpoint()
        if self.books is not None:
            self.books.drain()
        self._wait_for_all()

    def _wait_for_all(self) -> None:
        """Wait for rank 0: Ray Train ends all ranks when the first one raises. Collective."""
        if self.world.size > 1:
            dist.barrier(group=self.world.group)

    def _restore(self) -> None:
        """Restore the newest intact checkpoint, read by rank 0, or else the initial weights. Collective."""
        snapshot: Snapshot | None = None
        spec, patiently = self.setup.spec, self.setup.patiently
        if self.world.rank == 0:
            # when Ray restarts the workers, another job may have taken over the run
            patiently(lambda: lease.check(spec))
            snapshot, damaged = patiently(self.setup.store.load_newest)
            for message in damaged:
                events.record(spec.run_uri, "checkpoint_damaged", message)
        if self.world.size > 1:
            shared = [snapshot]
            dist.broadcast_object_list(shared, src=0, group=self.world.group)
            snapshot = shared[0]
        if snapshot is not None:
            self.trainer.restore(snapshot)
        elif self.config.train.start_from is not None:
            model = patiently(lambda: start_model(self.config))
            if self.world.rank == 0:
                # for the lineage: an alias in the configuration may move later
                start = records.Start(uri=self.config.train.start_from, digest=model.digest)
                patiently(lambda: records.START.write(spec.run_uri, start))
            self.trainer.start_from(model.weights)

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - began


def _silence_reports() -> None:
    """Silence Ray Train's log line per report and rank; its logger is named after a file."""
    for name in logging.root.manager.loggerDict:
        if name.endswith(os.path.join("execution", "context.py")):
            logging.getLogger(name).setLevel(logging.WARNING)
