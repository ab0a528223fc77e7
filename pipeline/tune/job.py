"""The job of a search: ``python -m pipeline.tune.job SPEC_URI``, the same locally and on a cluster.

Ray Tune runs the trials, and ASHA decides at every rung which of them continue. Scores from before a restart are
replayed to ASHA in the same order, so that a killed search resumes as if uninterrupted; stopped trials stay stopped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from typing import Any

from agit_core.errors import RunFailed
from pipeline import ray_session, records, train_job
from pipeline.launch import specs
from pipeline.train import lease
from pipeline.train.failures import PERMANENT, root_cause, sentence
from pipeline.tune.search import ENDED, Search, Trial, from_spec

log = logging.getLogger("pipeline.tune.job")

_PROGRESS_SECONDS = 2.0
_TUNE = {
    # no result files and progress tables by Tune: the search's records are in storage
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


def run(spec_uri: str) -> dict[str, Any]:
    """Run the specified search; store ``result.json`` and return its contents.

    Raises:
        BadInput: the specification does not fit the data or the cluster.
        RunFailed: no trial could be scored; the same call tries again.
    """
    spec = specs.read_spec(spec_uri)
    search = from_spec(spec)
    train_job.report(spec, "starting", message="starting the trials")
    os.environ.update(_TUNE)
    train, side_by_side = search.config.train, search.config.tune.concurrent
    with lease.alive(spec.run_uri), train_job.failure_recorded(spec):
        # one more CPU per trial for its driver
        with ray_session.connected(search.config, cpus=side_by_side * (train.workers + 1)) as scratch:
            _search(spec, search, scratch)
        result = _result(search)
        records.JOB_RESULT.write(spec.run_uri, result)
    train_job.report(spec, "finished", **_progress(search.trials(), search))
    return result


def _search(spec: records.Spec, search: Search, scratch: str) -> None:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    from pipeline.tune.trial import TuneTrial

    settings = search.config.tune
    tuner = tune.Tuner(
        tune.with_resources(TuneTrial, {"cpu": 1}),
        param_space={
            "trial": tune.grid_search(list(range(settings.trials))),
            "spec": spec.plain(),
            "scratch": os.path.join(scratch, "trials"),
            "own_ray": not os.environ.get("RAY_ADDRESS"),
        },
        tune_config=tune.TuneConfig(
            metric="score",
            mode="min" if search.lower_is_better else "max",
            scheduler=ASHAScheduler(
                time_attr="resource",
                max_t=search.total,
                grace_period=settings.grace_steps,
                reduction_factor=settings.reduction,
            ),
            max_concurrent_trials=settings.concurrent,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"trial-{trial.config['trial']}",
        ),
        run_config=tune.RunConfig(
            name=search.search_id,
            storage_path=scratch,
            callbacks=[_watch(spec, search)],
            verbose=0,
        ),
    )
    errors = tuner.fit().errors
    if errors:
        cause = root_cause(*errors)
        if isinstance(cause, lease.TakenOver):
            raise cause
        if isinstance(cause, PERMANENT):
            raise RunFailed(f"a trial stopped with an error of the program: {sentence(cause)}") from cause
        # the launcher restarts this job, which resumes from the stored records
        raise RuntimeError(f"a trial was lost: {sentence(cause)}") from cause


def _watch(spec: records.Spec, search: Search) -> Any:
    from ray import tune

    class Watch(tune.Callback):
        """Records which trials ASHA stopped, and the progress of the search."""

        def __init__(self) -> None:
            self._last_report = 0.0  # time.monotonic()

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            if (trial.last_result or {}).get("ended"):
                return
            stopped = search.trial(int(trial.config["trial"]))
            if stopped.state in ENDED:
                # already ended: its scores were being replayed, and ASHA may decide differently then
                return
            stopped.state = "stopped"
            stopped.message = f"stopped by ASHA at step {stopped.step}"
            search.store(stopped)
            of_run = records.Spec(run_id=stopped.run_id, run_uri=stopped.run_uri, attempt=1)
            train_job.report(of_run, "stopped", step=stopped.step, message="stopped by the search")

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if time.monotonic() - self._last_report >= _PROGRESS_SECONDS:
                self._last_report = time.monotonic()
                with contextlib.suppress(RunFailed):
                    train_job.report(spec, "running", **_progress(search.trials(), search))

    return Watch()


def _progress(trials: list[Trial], search: Search) -> dict[str, Any]:
    """Contents of ``progress.json``: the number of ended trials, and the state of the running ones."""
    status = []
    for trial in trials:
        if trial.state == "running":
            with contextlib.suppress(RunFailed):
                if state := records.PROGRESS.peek(trial.run_uri):
                    status.append(f"trial {trial.number} at step {state.step}")
    metric, best = search.config.tune.metric, search.best(trials)
    if best is not None:
        status.append(f"best {metric} {best.value(metric):.4g} (trial {best.number}, step {best.step})")
    return {
        "step": None,
        "done": sum(trial.state in (*ENDED, "failed") for trial in trials),
        "total": len(trials),
        "unit": "trials",
        "message": ", ".join(status),
    }


def _result(search: Search) -> dict[str, Any]:
    trials = search.trials()
    best = search.best(trials)
    if best is None:
        reason = next((trial.message for trial in trials if trial.message), "no trial was scored")
        raise RunFailed(f"none of the {len(trials)} trials has a score: {reason}")
    return {"search_id": search.search_id, "trials": len(trials), "best": best.number}


if __name__ == "__main__":
    sys.exit(train_job.main(sys.argv[1:], run))
