"""A trial in Ray Tune: an ordinary training, scored on the test images at each rung.

Training stops at each rung with a checkpoint and, if Tune continues the trial, resumes from it exactly, as after a
lost node. A stopped trial therefore leaves no process behind, and a trial that trained to its end is identical to the
run that ``agit run`` would have made.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import ray
from ray import tune

from agit_core.errors import BadInput, RunFailed
from agit_core.stages import collapse
from pipeline import logs, records, storage, train_job
from pipeline.config import Config
from pipeline.launch import specs
from pipeline.metrics.catalog import COVERAGE
from pipeline.records import Owner, Result, Spec
from pipeline.train import events, lease
from pipeline.tune.search import ENDED, Search, from_spec

log = logging.getLogger(__name__)

WORST = 1e9
"""Score of a trial that has none, if lower is better; Tune compares only numbers."""


class TuneTrial(tune.Trainable):
    """Actor that runs trials one after another."""

    def setup(self, config: dict[str, Any]) -> None:
        self._spec = Spec.model_validate(config["spec"])
        self._search: Search = from_spec(self._spec)
        self._scratch: str = config["scratch"]
        self._own_ray: bool = config["own_ray"]
        self._begin(int(config["trial"]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(int(new_config["trial"]))
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next rung and score, or replay the score that the rung already has."""
        trial, at = self._trial, self._next
        self._next += 1
        if at >= len(trial.scores) and trial.state not in ENDED:
            self._advance()
        row = trial.scores[at] if at < len(trial.scores) else None
        ended = trial.state in (*ENDED, "failed") and at >= len(trial.scores) - 1
        usable = row is not None and not row.get("collapsed")
        value = row["metrics"].get(self._search.config.tune.metric) if row and usable else None
        worst = WORST if self._search.lower_is_better else -WORST
        return {
            "resource": row["resource"] if row else self._rung(),
            "score": worst if value is None else value,
            "done": ended,
            "ended": ended,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Do nothing: checkpoints are in the run's storage."""
        return {}

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing, as in :meth:`save_checkpoint`."""

    # ------------------------------------------------------------------ one trial

    def _begin(self, number: int) -> None:
        self._trial = self._search.trial(number)
        if logs.as_json():
            logs.set_up()
        logs.bind(run_id=self._trial.run_id, trial=number)
        if self._trial.state == "failed":
            self._trial.state, self._trial.message = "running", ""
        self._next = 0

    def _rung(self) -> int:
        """The first rung without a score."""
        return next((rung for rung in self._search.rungs if rung > self._trial.resource), self._search.total)

    def _advance(self) -> None:
        """Train to the next rung, score, and store the trial's new state."""
        search, trial = self._search, self._trial
        rungs = dict(zip(search.rungs, search.steps_of(trial.number), strict=True))
        trial.state = "running"
        search.store(trial)
        config = _executed(search, trial.number)
        spec = specs.spec_of(config, search.data_uri, trial.run_id)
        spec, until = spec.but(attempt=1), rungs[self._rung()]
        lease.check(self._spec)
        try:
            result = _train(spec, until, config, search.uri, self._scratch, self._own_ray)
            scored = _score(config, result.checkpoint, search.data_uri)
        except (BadInput, RunFailed) as error:
            lease.check(self._spec)
            # the error must be that of the event: a trial can recover from a divergence and then fail otherwise
            kinds = {"mask_collapsed", "diverged"}
            messages = [e.message for e in events.read(trial.run_uri) if e.kind in kinds]
            collapsed = any(message in str(error) for message in messages)
            trial.state, trial.message = "collapsed" if collapsed else "failed", str(error)
            train_job.report(spec, trial.state, message=trial.message)
            search.store(trial)
            return
        step, metrics = result.steps, scored["metrics"]
        # the run may be past the requested step, if it was trained further outside of this search
        resource = max(rung for rung, at in rungs.items() if at <= step)
        reason = _collapsed(metrics, search.config.tune.metric)
        row = {"resource": resource, "step": step, "time": time.time(), **scored}
        trial.scores.append(row | {"samples": result.samples, "collapsed": reason is not None})
        if reason is not None:
            trial.state, trial.message = "collapsed", reason
        elif resource == search.total:
            trial.state = "finished"
        search.store(trial)
        log.info(
            "trial %d scored at step %d", trial.number, step, extra={"fields": {"step": step, **metrics}}
        )


def _collapsed(metrics: dict[str, float | None], metric: str) -> str | None:
    """Why a trial with these scores has collapsed; None if it has not."""
    if metrics.get(metric) is None:
        return "the scores are not finite"
    for domain in "ab":
        coverage = metrics.get(COVERAGE.key(domain))
        if coverage is not None and (how := collapse({"coverage": coverage})) is not None:
            return f"the attention of domain {domain} is {how} on the test images"
    return None


def _executed(search: Search, number: int) -> Config:
    """Configuration to run a trial with; the settings changed here are not part of a run's identity."""
    config = search.config_of(number)
    train: dict[str, Any] = {"stop_on_collapse": True}
    if config.deciding_score is not None:
        train["best_by"] = "cycle"
    side_by_side = search.config.tune.concurrent
    if side_by_side > 1 and config.train.threads_per_worker is None:
        cores = os.cpu_count() or 1
        train["threads_per_worker"] = max(1, cores // (side_by_side * config.train.workers))
    evaluate = {"max_images": search.images}
    return config.model_copy(
        update={
            "train": config.train.model_copy(update=train),
            # the search scores its trials itself, and stops them
            "validation": config.validation.model_copy(update={"every": None, "early_stopping": None}),
            "evaluate": config.evaluate.model_copy(update=evaluate),
        }
    )


def _train(spec: Spec, until: int, config: Config, search_uri: str, scratch: str, own_ray: bool) -> Result:
    """Train to step ``until``, or return the result of a training that is already finished."""
    from pipeline.train.driver import drive

    if (done := records.RESULT.peek(spec.run_uri)) is not None:
        return done
    # a lease left by an earlier attempt of this search does not block it
    lease.refuse_second(spec.run_uri, search=search_uri)
    owner = Owner(**lease.this_process(), search=search_uri)
    specs.write_spec(spec, 1, owner)
    scratch = storage.join(scratch, f"{spec.run_id}-{until}")
    with lease.alive(spec.run_uri):
        result = drive(spec.but(owner=owner, until=until), config, scratch, own_ray, alone=False)
    if result.steps >= (result.total_steps or 0):
        train_job.finish(spec, result)
    else:
        train_job.report(spec, "paused", step=result.steps, message="waits for the search's decision")
    return result


def _score(config: Config, checkpoint_uri: str, data_uri: str) -> dict[str, Any]:
    """Score a checkpoint in a Ray worker, on a GPU if training uses one: ``metrics`` and the ``inception`` used."""
    from pipeline.train.driver import needs_gpu

    task = ray.remote(_score_here).options(
        num_cpus=0, num_gpus=1 if needs_gpu(config) else 0, max_retries=max(config.train.max_failures, 0)
    )
    scored: dict[str, Any] = ray.get(task.remote(config.plain(), checkpoint_uri, data_uri))
    return scored


_inceptions: dict[Any, Any] = {}
"""Inception networks loaded by this process; Ray reuses worker processes, so each loads one only once."""


def _score_here(tree: dict[str, Any], checkpoint_uri: str, data_uri: str) -> dict[str, Any]:
    import torch

    from agit_core import precision
    from pipeline.evaluate import feature_cache, scoring

    config = Config.model_validate(tree)
    torch.set_num_threads(config.train.threads_per_worker or os.cpu_count() or 1)
    device = precision.pick_device(config.evaluate.device)
    key = (config.evaluate.inception, str(device))
    if key not in _inceptions:
        _inceptions[key] = feature_cache.load_inception(config, device)
    metrics = scoring.figures(config, checkpoint_uri, data_uri, _inceptions[key], device)
    return {"metrics": metrics, "inception": _inceptions[key].describe()}
