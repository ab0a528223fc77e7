"""The Ray Train worker: runs the trainer on its slice of the batch, with logging, samples and checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from agit_core.checkpoint import Snapshot
from agit_core.errors import Diverged, RunFailed
from agit_core.loader import Batch, ImageSource, Loader
from agit_core.sampling import SamplePlan
from agit_core.trainer import MeanFigures, StepResult, Trainer
from agit_core.world import World
from pipeline import logs, records, storage
from pipeline.config import Config
from pipeline.data.format import manifest
from pipeline.data.read import held_out
from pipeline.data.read.sample_order import sample_plan
from pipeline.train import events, lease, scored
from pipeline.train.background_writer import Progress, Saver
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.failures import Preempted
from pipeline.train.outputs import CollapsedMask, MaskWatch, Samples, faint_at_switch, sample_files, scores
from pipeline.train.profile import StepProfile
from pipeline.train.prometheus import Gauges
from pipeline.train.reading import PatientImages, open_split, patiently, start_model

log = logging.getLogger(__name__)

T = TypeVar("T")
_SCORES_SECONDS = 0.5
"""Between looks for scores that early stopping waits for."""

_PREEMPTION_SECONDS = 2.0
"""Interval between checks for preempted nodes; spot nodes give as little as 25 s notice."""
_MOST_STEPS_UNSEEN = 200
_LIVE_ROWS = 100
"""Most rows in ``progress.json``, for those who show a run while it trains (:mod:`pipeline.live`)."""


def train(loop: dict[str, Any]) -> dict[str, Any] | None:
    """Train from the newest complete checkpoint to the end.

    Args:
        loop: ``spec`` (see :mod:`pipeline.launch.specs`) and ``watch_preemption``.

    Returns:
        The contents of ``result.json`` on rank 0; None on other ranks.
    """
    # code that is compiled and loaded again: PyTorch's own choice is a folder in /tmp with a name known to everybody
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(storage.private_folder("agit-compiled")))
    return _Worker(loop["spec"], loop["watch_preemption"]).run()


class _Worker:
    def __init__(self, spec: dict[str, Any], watch_preemption: bool) -> None:
        self.started = time.time()
        self.spec = spec
        self.run_uri: str = spec["run_uri"]
        self.config = Config.model_validate(spec["config"])
        self.watch_preemption = watch_preemption
        context = ray.train.get_context()
        _silence_reports()
        if logs.as_json():
            logs.set_up()
        logs.bind(run_id=spec["run_id"], rank=context.get_world_rank())
        train = self.config.train
        # before the first use of the thread pool, so that results do not depend on when it was sized
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(train.threads_per_worker or max(1, cores // context.get_local_world_size()))
        self.device: torch.device = ray.train.torch.get_device()
        self.world = World.current()
        self.store = CheckpointStore.of(self.run_uri, self.config)
        data_uri = spec["data_uri"]
        described = self._patiently(lambda: manifest.read(data_uri))
        apart = self._patiently(lambda: held_out.rows(self.config, data_uri, described))
        self.score_every = None if apart is None else self.config.validation.every
        self.plan = sample_plan(self.config, data_uri, described, apart)
        sources: dict[Any, ImageSource] = {d: self._images(f"train{d.upper()}") for d in "ab"}
        if apart is not None:
            sources = {d: held_out.Subset(sources[d], apart[d].trained) for d in apart}
        self.total = total_steps(self.config, self.plan)
        # a trial of a search stops at each rung and may resume later
        self.end = min(int(spec.get("until") or self.total), self.total)
        self.loader = Loader(
            sources,
            self.plan,
            self.config.data.image_size,
            self.config.method.flip,
            train.prefetch_threads,
            pin=self.device.type == "cuda",
        )
        self.trainer = self._new_trainer()
        # twice as often as configured, one at a time: even a kill during a slow upload then loses at most one
        # configured interval
        self.checkpoint_every = max(1, train.checkpoint_every // 2)
        self.checkpointed = -1
        self.rows: list[dict[str, Any]] = []
        self.figures: MeanFigures | None = None
        self.logged = (0.0, 0)
        """Time and step of the previous row, for the speed."""
        self.looked = (0.0, 0)
        """Time and step of the last check for preempted nodes."""
        self.look_at = 0
        # a private Ray instance exports no metrics
        self.gauges = Gauges(spec["run_id"], self.end) if watch_preemption and not self.world.rank else None
        self.epochs: list[tuple[int, MeanFigures]] = []
        self.mask_watch = MaskWatch()
        profiled = train.profile if not self.world.rank else None
        self.profile = StepProfile(profiled, self.run_uri, self.device) if profiled else None
        self.samples: Samples | None = None
        self.seconds = {"data_wait": 0.0, "checkpoint": 0.0, "sample": 0.0, "score_wait": 0.0}

    def _new_trainer(self) -> Trainer:
        return Trainer(
            self.config.method,
            self.plan,
            self.config.data.image_size,
            self.total,
            self.device,
            self.config.seed,
            self.world,
            self.config.train.microbatch,
            self.config.train.activation_checkpointing,
        )

    # ------------------------------------------------------------------ the loop

    def run(self) -> dict[str, Any] | None:
        self._resume()
        first = self.trainer.step
        if self.world.rank:
            self._train(None, None)
            return None
        self.furthest.step = first
        # the weights and Adam's two means
        self.store.check_room(3 * sum(t.nbytes for t in self.trainer.networks.state_dict().values()))
        saver = Saver(self.store, self.config.train.storage_patience_s, lambda: lease.check(self.spec))
        progress = Progress(self.run_uri, saver, self.plan.batch_size, **self._state(first))
        try:
            self._train(saver, progress)
            saver.drain()
        finally:
            saver.close()
            progress.close(step=self.trainer.step, rows=[])
        self.furthest.remove()
        return self._result(first)

    def _train(self, saver: Saver | None, progress: Progress | None) -> None:
        """Run the loop; after a divergence, restart it from an earlier checkpoint as ``train.rollbacks`` allows."""
        began = time.perf_counter()
        done = False
        while not done:
            self.logged = self.looked = (time.perf_counter(), self.trainer.step)
            self.look_at = self.trainer.step + 1
            if self._stops_early(self.trainer.step, saver, progress):  # killed after it had decided so
                break
            with contextlib.closing(
                self.loader.batches(self.trainer.step, self.trainer.slots, self.end)
            ) as batches:
                try:
                    self._loop(batches, saver, progress)
                    done = True
                except Diverged as error:
                    reason = str(error)
            if not done:
                self._roll_back(reason, saver, progress)
        self.loop_seconds = time.perf_counter() - began

    def _loop(self, batches: Iterator[Batch], saver: Saver | None, progress: Progress | None) -> None:
        """Run the training loop. ``saver`` and ``progress`` exist on rank 0 only and must not affect collectives."""
        train = self.config.train
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.seconds["data_wait"] += time.perf_counter() - asked
            if batch is None:
                break
            if self.profile is not None:
                self.profile.before(self.trainer.step)
            result = self.trainer.train_on(batch)
            if self.profile is not None and saver is not None and (files := self.profile.after(result.step)):
                saver.put(files)
            logs.bind(step=result.step)
            if saver is not None and progress is not None:
                saver.check()
                self.furthest.step = result.step
                progress.update(step=result.step, epoch=result.epoch, stage=result.stage.value)
                if result.switched:
                    saver.put(events.as_file(self.run_uri, "switched", step=result.step - 1))
            last = result.step == self.end
            scored_here = self.score_every is not None and result.step % self.score_every == 0
            stores = result.step % self.checkpoint_every == 0 or last or scored_here
            # also before each checkpoint, so that the rows of a resumed run match those of an uninterrupted one
            due = result.step % train.log_every == 0 or stores
            if due:
                self._log(result, saver, progress)
                self._watch_masks(result.step, saver, progress)
            if train.samples and (result.step % train.sample_every == 0 or last):
                self._sample(result.step, saver)
            if stores:
                self._checkpoint(saver)
            if not last and self._stops_early(result.step, saver, progress):
                break
            if (
                self.watch_preemption
                and result.step >= self.look_at
                and not last
                and self._preempted(result.step)
            ):
                if not due:
                    self._log(result, saver, progress)
                self._leave(saver)

    def _log(self, result: StepResult, saver: Saver | None, progress: Progress | None) -> None:
        self.figures = self.trainer.window()
        losses, health = self.figures.losses, self.figures.mask_health
        self.epochs = self.trainer.ended_epochs()
        if saver is None or progress is None:
            self.trainer.check_losses(self.figures)
            return
        now = time.perf_counter()
        then, before = self.logged
        self.logged = (now, result.step)
        row: dict[str, Any] = {
            "step": result.step,
            "epoch": result.epoch,
            "stage": result.stage.value,
            "learning_rate": self.trainer.learning_rate,
            "losses": losses,
            "mask_health": health,
            "images_per_s": round((result.step - before) * self.plan.batch_size / max(now - then, 1e-9), 2),
            "time": time.time(),
        }
        if self.device.type == "cuda":
            row["gpu_memory_gb"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 3)
        if self.epochs:
            row["epochs"] = [{"epoch": e, "mask_health": means.mask_health} for e, means in self.epochs]
        self.rows.append(row)
        log.info("step %d of %d", result.step, self.total, extra={"fields": row})
        if self.gauges is not None:
            self.gauges(row, saver.last_stored, saver.last_stored_at or self.started)
        progress.update(losses=losses, mask_health=health, rows=self.rows[-_LIVE_ROWS:])
        self.trainer.check_losses(self.figures)

    def _watch_masks(self, step: int, saver: Saver | None, progress: Progress | None) -> None:
        if not self.config.method.networks.has_attention or self.figures is None:
            return
        health, switched = self.figures.mask_health, self.trainer.stages.switched_at_step
        just_switched = switched is not None and step - self.figures.steps <= switched < step
        faint = faint_at_switch(health) if just_switched else None
        message = self.mask_watch(self.figures, self.epochs, step)
        if saver is not None and progress is not None:
            if not self.mask_watch.alarmed:
                progress.update(message="")
            for kind, told in (("mask_faint", faint), ("mask_collapsed", message)):
                if told is not None:
                    saver.put(events.as_file(self.run_uri, kind, told, step=step))
                    progress.update(message=told)
        if message is not None and self.config.train.stop_on_collapse and step < self.end:
            # keep the curves and a state to resume from
            self._save_before_leaving(saver)
            raise CollapsedMask(
                f"{message}; lower method.optimizer.attention_learning_rate or switch stages earlier "
                "(method.stages.switch_at), or go on all the same with train.stop_on_collapse=false"
            )

    def _sample(self, step: int, saver: Saver | None) -> None:
        if saver is None:
            return
        began = time.perf_counter()
        if self.samples is None:
            self.samples = Samples(
                {d: self._images(f"test{d.upper()}") for d in "ab"},
                self.config.train.samples,
                self.config.method.networks,
                self.config.seed,
                self.device,
            )
        strips = self.samples.draw(self.trainer.networks.state_dict() | self.trainer.averaged)
        saver.put(sample_files(strips, self.run_uri, step))
        self.seconds["sample"] += time.perf_counter() - began

    def _checkpoint(self, saver: Saver | None) -> None:
        began = time.perf_counter()
        if saver is not None:
            saver.catch_up()
        snapshot = self.trainer.snapshot()
        if saver is not None and snapshot is not None:
            info = snapshot.info | {"run_id": self.spec["run_id"], "scores": scores(self.rows)}
            saver.put(self._rows_file(), dataclasses.replace(snapshot, info=info))
        ray.train.report(
            {"step": self.trainer.step, "epoch": self.plan.epoch_of(self.trainer.step)}
            | (self.figures.losses if self.figures else {})
        )
        self.checkpointed = self.trainer.step
        self.seconds["checkpoint"] += time.perf_counter() - began

    def _rows_file(self) -> dict[str, bytes]:
        """The rows since the last checkpoint as a file to write: URI -> content."""
        rows, self.rows = self.rows, []
        name = storage.join(self.run_uri, "metrics", f"{self.trainer.step:08d}.jsonl")
        return {name: "".join(map(storage.json_line, rows)).encode()} if rows else {}

    def _roll_back(self, reason: str, saver: Saver | None, progress: Progress | None) -> None:
        """Return to the newest checkpoint, or to the start, at half the learning rate. Collective.

        The number of rollbacks is part of a checkpoint, so a killed run repeats the same course.

        Raises:
            Diverged: ``train.rollbacks`` is exhausted.
        """
        allowed, count, step = self.config.train.rollbacks, self.trainer.rollbacks + 1, self.trainer.step
        if saver is not None:
            saver.put(self._rows_file() | events.as_file(self.run_uri, "diverged", reason, step=step))
            saver.drain()
        if self.world.size > 1:  # Ray Train ends all ranks when the first one raises
            dist.barrier(group=self.world.group)
        if count > allowed:
            way_out = "or let train.rollbacks go back to the last checkpoint at half the rate"
            raise Diverged(f"{reason}, {f'as {allowed} rollbacks did not help' if allowed else way_out}")
        self.rows, self.epochs, self.figures, self.checkpointed = [], [], None, -1
        self.mask_watch = MaskWatch()
        del self.trainer  # first, because a GPU may lack the memory for two
        self.trainer = self._new_trainer()
        self._restore()
        self.trainer.rollbacks = count
        if saver is not None and progress is not None:
            self._forget_later_steps()
            told = f"went back at {0.5**count:.3g} times the learning rate ({count} of {allowed} times)"
            saver.put(events.as_file(self.run_uri, "rolled_back", told, step=self.trainer.step))
            progress.update(step=self.trainer.step, message=told)

    def _stops_early(self, step: int, saver: Saver | None, progress: Progress | None) -> bool:
        """Whether ``validation.early_stopping`` ends the run after this step. Collective where the step is scored.

        The scores of the steps before this one decide, and it waits for them: how fast they come must not show in the
        result, and scoring has the time of a whole interval.
        """
        patience, metric = self.config.validation.early_stopping, self.config.deciding_score
        if patience is None or self.score_every is None or not step or step % self.score_every:
            return False
        began = time.perf_counter()
        needed = set(scored.due(self.score_every, step - self.score_every))
        while self._agreed(
            saver is not None and not self._patiently(lambda: needed <= records.scored_steps(self.run_uri))
        ):
            if saver is not None and progress is not None:
                saver.check()
                progress.update(message="waiting for the scores of earlier checkpoints")
            time.sleep(_SCORES_SECONDS)
        self.seconds["score_wait"] += time.perf_counter() - began
        stop = False
        if saver is not None and progress is not None:
            all_scores = self._patiently(lambda: records.read_scores(self.run_uri))
            known = {at: one for at, one in all_scores.items() if at in needed}
            stop = scored.hopeless(known, str(metric), patience)
            if stop:
                best = scored.best(known, str(metric))
                reason = f"no {metric} better than that of step {best} in {patience} scores"
                saver.put(events.as_file(self.run_uri, "stopped_early", reason, step=step))
                progress.update(message=reason)
        return self._agreed(stop)

    def _agreed(self, here: bool) -> bool:
        """Whether it is so on any rank. Collective."""
        return bool(self.world.sum(torch.tensor([float(here)])))

    def _preempted(self, step: int) -> bool:
        """Whether a node is about to be preempted; also sets the step of the next check. Collective.

        Each check is a barrier of all workers, so rank 0's clock decides the number of steps between them.
        """
        if ray.train.get_preemption_info() is not None:
            return True
        now, (then, before) = time.perf_counter(), self.looked
        self.looked = (now, step)
        steps = _PREEMPTION_SECONDS * (step - before) / max(now - then, 1e-9)
        steps = min(max(steps, 1), _MOST_STEPS_UNSEEN) if self.world.rank == 0 else 0
        self.look_at = step + int(self.world.sum(torch.tensor(int(steps))))
        return False

    def _leave(self, saver: Saver | None) -> None:
        """Save the state and leave because a node is about to be preempted. Collective."""
        self._save_before_leaving(saver)
        raise Preempted("a node of the training is being taken away")

    def _save_before_leaving(self, saver: Saver | None) -> None:
        """Wait until rank 0 has stored everything: Ray Train ends all ranks when the first one raises. Collective."""
        if self.checkpointed != self.trainer.step:  # saving again would first remove the stored one
            self._checkpoint(saver)
        if saver is not None:
            saver.drain()
        if self.world.size > 1:
            dist.barrier(group=self.world.group)

    # ------------------------------------------------------------------ state

    def _resume(self) -> None:
        """Restore the run's state and record the start. Collective."""
        self._restore()
        nodes = self.world.gather(ray.get_runtime_context().get_node_id())
        if nodes is not None:
            self._forget_later_steps()
            self._tell_start(len(set(nodes)))

    def _restore(self) -> None:
        """Restore the newest intact checkpoint, read by rank 0, or else the initial weights. Collective."""
        snapshot: Snapshot | None = None
        if self.world.rank == 0:
            # when Ray restarts the workers, another job may have taken over the run
            self._patiently(lambda: lease.check(self.spec))
            snapshot, damaged = self._patiently(self.store.load_newest)
            for message in damaged:
                events.record(self.run_uri, "checkpoint_damaged", message)
        if self.world.size > 1:
            shared = [snapshot]
            dist.broadcast_object_list(shared, src=0, group=self.world.group)
            snapshot = shared[0]
        if snapshot is not None:
            self.trainer.restore(snapshot)
        elif self.config.train.start_from is not None:
            model = self._patiently(lambda: start_model(self.config))
            if self.world.rank == 0:
                self._keep_start(model.digest)
            self.trainer.start_from(model.weights)

    def _forget_later_steps(self) -> None:
        step = self.trainer.step
        self._patiently(lambda: remove_metrics_after(self.run_uri, step))
        self._patiently(lambda: scored.remove_after(self.run_uri, step))

    def _keep_start(self, digest: str) -> None:
        """Record the initial weights for the lineage, because an alias in the configuration may move later."""
        start = records.Start(uri=str(self.config.train.start_from), digest=digest)
        self._patiently(lambda: records.START.write(self.run_uri, start))

    def _tell_start(self, nodes: int) -> None:
        step = self.trainer.step
        self.furthest = events.Furthest(self.run_uri)
        with contextlib.suppress(RunFailed):
            if not events.read(self.run_uri):
                self.furthest.step = 0  # stale: of an earlier run whose folder was removed
        before = self.furthest.step
        with contextlib.suppress(RunFailed):
            if (last := records.PROGRESS.peek(self.run_uri)) is not None:
                before = max(before, last.step or 0)
        kind = "resumed" if step or before else "started"
        redone = max(0, before - step)
        events.record(self.run_uri, kind, step=step, redone=redone, workers=self.world.size, nodes=nodes)

    def _images(self, split: str) -> PatientImages:
        block = self.plan.block
        return PatientImages(lambda: open_split(self.spec, self.config, split, block), self._patiently)

    def _patiently(self, action: Callable[[], T]) -> T:
        return patiently(action, self.config.train.storage_patience_s)

    def _state(self, first: int) -> dict[str, Any]:
        return {
            "state": "running",
            "step": first,
            "total_steps": self.total,
            "epoch": self.plan.epoch_of(first),
            "stage": self.trainer.stages.stage.value,
            "resumed_from": first,
            "workers": self.world.size,
            "attempt": self.spec["attempt"],
            "message": "",
        }

    def _result(self, first: int) -> dict[str, Any]:
        step, best = self.trainer.step, self.store.best()
        pictures = storage.list_(records.sample_folder(self.run_uri, step))
        seconds = max(getattr(self, "loop_seconds", 0.0), 1e-9)
        return {
            "run_id": self.spec["run_id"],
            "steps": step,
            "total_steps": self.total,
            "epoch": self.plan.epoch_of(step - 1),
            "stage": self.trainer.stages.stage.value,
            "switched_at_step": self.trainer.stages.switched_at_step,
            "checkpoint": self.store.folder(step),
            "best_checkpoint": None if best is None else self.store.folder(best),
            "samples": [uri for uri in pictures if uri.endswith(".png")],
            "losses": self.figures.losses if self.figures else {},
            "mask_health": self.figures.mask_health if self.figures else {},
            "workers": self.world.size,
            "device": self.device.type,
            "resumed_from": first,
            "rollbacks": self.trainer.rollbacks,
            "stopped_early": step < self.end,
            "images_per_s": round((step - first) * self.plan.batch_size / seconds, 2),
            "seconds": {"loop": round(seconds, 3)} | {k: round(v, 3) for k, v in self.seconds.items()},
        }


def _silence_reports() -> None:
    """Silence Ray Train's log line per report and rank; its logger is named after a file."""
    for name in logging.root.manager.loggerDict:
        if name.endswith(os.path.join("execution", "context.py")):
            logging.getLogger(name).setLevel(logging.WARNING)


def total_steps(config: Config, plan: SamplePlan) -> int:
    """Number of steps of the run, after which the learning rate is 0."""
    steps = plan.steps(config.train.epochs)
    return min(steps, config.train.max_steps) if config.train.max_steps else steps


def remove_metrics_after(run_uri: str, step: int) -> None:
    """Remove metric rows of steps that will be repeated."""
    for uri in storage.list_(storage.join(run_uri, records.METRICS)):
        stem = storage.name(uri).removesuffix(".jsonl")
        if stem.isdigit() and int(stem) > step:
            storage.remove(uri)
