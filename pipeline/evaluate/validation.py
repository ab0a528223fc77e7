"""Scoring of a run's checkpoints on its validation images, in a Ray actor during the training.

The actor takes no Ray slot and runs on the CPU, at low priority and with half of the cores, which bounds its cost
for the training: nothing on a machine with idle cores, otherwise the share of a process with niceness 10, for a
total of ``validation.seconds`` in the result. It keeps the Inception network loaded (about 0.8 GB). A thread of the
job finds due checkpoints without scores; training does not wait for it, and a checkpoint is kept until it is
scored. A restarted job scores the missing ones.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray

from agit_core.errors import BadInput, RunFailed
from agit_core.scores.inception import Inception
from pipeline import records, storage
from pipeline.config import Config
from pipeline.data.format import manifest
from pipeline.data.read import held_out
from pipeline.records import Result, Scores, Spec, Validation
from pipeline.train import events, lease, scored
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.failures import root_cause, sentence

log = logging.getLogger(__name__)
_LOOK_SECONDS = 5.0
_NICENESS = 10
_TRIES = 5
"""Attempts per checkpoint, because the scoring process may be killed."""


class ScoringProcess:
    """Ray actor for scoring; a dedicated process, so that it can set its priority and number of threads."""

    def __init__(self) -> None:
        os.nice(_NICENESS)
        self._inception: Inception | None = None

    def score(self, tree: dict[str, Any], model_uri: str, data_uri: str) -> dict[str, float | None]:
        """Metrics of a checkpoint on the configuration's validation images."""
        import torch

        from pipeline.evaluate import feature_cache, scoring

        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
        config, device = Config.model_validate(tree), torch.device("cpu")
        self._inception = self._inception or feature_cache.load_inception(config, device)
        rows = held_out.rows(config, data_uri, manifest.read(data_uri))
        assert rows is not None, "scoring needs data with validation images"
        return scoring.figures(config, model_uri, data_uri, self._inception, device, rows)


class Scorer:
    """Scores due checkpoints in a background thread, oldest first, until it is closed."""

    def __init__(self, spec: Spec, config: Config, images: dict[str, int]) -> None:
        self._spec = spec
        self._config = config
        self._images = images
        self._run_uri = spec.run_uri
        self._store = CheckpointStore.of(self._run_uri, config)
        self._actor: Any = None
        self._tries: dict[int, int] = {}
        self._last: int | None = None
        self._closed = threading.Event()
        self._taken_over: lease.TakenOver | None = None
        self._thread = threading.Thread(target=self._work, name="validation", daemon=True)
        self._thread.start()

    def finish(self, result: Result, progress: Callable[[str], None]) -> Result:
        """Wait for all missing scores, including the last checkpoint's, and select the model.

        Raises:
            RunFailed: no checkpoint could be scored.
            TakenOver: another job has taken over the run.
        """
        last = self._last = result.steps
        if self._waiting():
            progress("scoring the last checkpoints on the validation images")
        while self._waiting():
            if self._taken_over is not None:
                raise self._taken_over
            time.sleep(_LOOK_SECONDS / 5)
        scores = {step: one for step, one in records.read_scores(self._run_uri).items() if step <= last}
        if scores and not any(one.metrics for one in scores.values()):
            scored.remove_after(self._run_uri, 0)  # the next call tries again
            message = next(iter(scores.values())).message
            raise RunFailed(
                f"{message}; fix the cause and run the same command again to score the stored checkpoints"
            )
        metric, best = self._config.deciding_score, self._store.best()
        if metric is not None and best is None:
            message = f"no checkpoint has a finite {metric}; the last one is the model (train.best_by)"
            events.record(self._run_uri, "not_validated", message)
            metric = None
        chosen = last if metric is None or best is None else best
        self._store.prune()
        empty = Scores(step=0)
        validation = Validation(
            metric=metric,
            images=self._images,
            best_step=chosen,
            best=scores.get(chosen, empty).metrics,
            last_step=last,
            last=scores.get(last, empty).metrics,
            scored=len(scores),
            seconds=round(sum(one.seconds for one in scores.values()), 1),
        )
        return result.but(
            best_checkpoint=None if best is None else self._store.folder(best),
            model_checkpoint=self._store.folder(chosen),
            validation=validation,
        )

    def close(self) -> None:
        self._closed.set()
        if self._actor is not None:
            with contextlib.suppress(Exception):  # Ray may be gone
                ray.kill(self._actor)
        self._thread.join(timeout=10)

    def _waiting(self) -> list[int]:
        waiting, last = self._store.unscored(), self._last
        if last is not None and last in set(self._store.steps()) - records.scored_steps(self._run_uri):
            waiting = sorted({*waiting, last})
        return waiting

    def _work(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            try:
                for step in self._waiting():
                    if self._closed.is_set():
                        return
                    self._score(step)
            except lease.TakenOver as error:
                self._taken_over = error
                return
            except (RunFailed, OSError) as error:
                log.warning("the storage does not answer, scoring later: %s", error)

    def _score(self, step: int) -> None:
        began = time.monotonic()
        try:
            if self._actor is None:
                self._actor = ray.remote(ScoringProcess).options(num_cpus=0, num_gpus=0).remote()
            model_uri, data_uri = self._store.folder(step), self._spec.data_uri
            metrics = ray.get(self._actor.score.remote(self._config.plain(), model_uri, data_uri))
        except Exception as error:
            if not self._closed.is_set() and step in self._store.steps():
                self._failed(step, root_cause(error))
            return
        seconds = round(time.monotonic() - began, 2)
        self._write(Scores(step=step, metrics=metrics, seconds=seconds, time=time.time()))
        log.info("step %d scored in %.1f s", step, seconds, extra={"fields": {"step": step, **metrics}})

    def _failed(self, step: int, cause: BaseException) -> None:
        """Schedule a retry, or record that the step has no scores, for which early stopping and the run's end wait."""
        log.warning("step %d could not be scored: %s", step, sentence(cause))
        if isinstance(
            cause, RunFailed
        ):  # the storage, which is waited for as long as the training waits for it
            return
        if not isinstance(cause, BadInput):
            with contextlib.suppress(Exception):  # it may be dead already
                ray.kill(self._actor)
            self._actor = None
            self._tries[step] = self._tries.get(step, 0) + 1
            if self._tries[step] < _TRIES:
                return
        message = f"the checkpoint of step {step} could not be scored: {sentence(cause)}"
        events.record(self._run_uri, "scoring_failed", message, step=step)
        self._write(Scores(step=step, time=time.time(), message=message))

    def _write(self, scores: Scores) -> None:
        lease.check(self._spec)
        records.score_file(scores.step).write(storage.join(self._run_uri, records.SCORES), scores)


@contextlib.contextmanager
def beside(spec: Spec, config: Config) -> Iterator[Scorer | None]:
    """Score the run's checkpoints within the block; yields None if scoring is off or no images are held out."""
    if config.validation.every is None:
        yield None
        return
    described = manifest.read(spec.data_uri)
    rows = held_out.rows(config, spec.data_uri, described)
    if rows is None:
        message = held_out.too_few(config, described)
        log.warning(message)
        events.record(spec.run_uri, "not_validated", message)
        yield None
        return
    scorer = Scorer(spec, config, {f"train_{domain}": len(one.held) for domain, one in rows.items()})
    try:
        yield scorer
    finally:
        scorer.close()
