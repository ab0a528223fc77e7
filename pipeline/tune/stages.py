"""The stages of ``agit tune`` as plain functions: prepare (the run's own), search, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import progress, records, storage
from pipeline.config import Config
from pipeline.launch import follow, specs
from pipeline.records import Data
from pipeline.train.failures import Allowance
from pipeline.tune.search import Search, Trial
from pipeline.tune.search import preset as preset_of

PRESETS = Path(".agit/presets")
"""Where presets of searches in object storage are copied to, for ``agit run`` reads local files."""


def check(config: Config) -> None:
    """Refuses a space that cannot be searched before anything is prepared.

    Raises:
        BadInput: see :func:`pipeline.tune.space.ranges`.
    """
    from pipeline.tune import space

    space.ranges(config)


def search(config: Config, data: Data) -> Search:
    """Runs the trials, goes on with them or finds them done.

    Raises:
        BadInput: the space or the configuration does not fit.
        RunFailed: the job did not finish; the same call goes on.
    """
    found = Search.of(config, data.uri)
    with progress.stage("tune") as stage:
        if done(found):
            stage.reuse(f"finished search {found.search_id}")
        else:
            spec = specs.spec_of(config, found.data_uri, found.search_id)
            spec |= {"run_uri": found.uri, "job": "pipeline.tune.job"}
            # one with fewer trials, or with some that failed
            storage.remove(records.JOB_RESULT.uri(found.uri))
            follow.run_job(config, spec, Allowance(lambda: _scores(found), config.train.max_failures), stage)
            stage.message = f"{config.tune.trials} trials, search {found.search_id}"
    return found


def done(found: Search) -> bool:
    """Whether all the trials that are asked for have ended, none of them with a failure."""
    result = records.JOB_RESULT.peek(found.uri)
    if result is None or result["trials"] != found.config.tune.trials:
        return False
    return all(trial.state != "failed" for trial in found.trials())


def report(found: Search) -> str:
    """Builds the search's report and returns its URI."""
    from pipeline.tune.report import build

    with progress.stage("report") as stage:
        uri = stage.message = build(found)
    return uri


def summarize(found: Search, report_uri: str, preset_to: Path | None = None) -> dict[str, Any]:
    """The object that ``--json`` prints, also kept as ``summary.json``; writes the best trial's preset.

    ``run_id``, ``steps`` and ``metrics`` are the best trial's, under the names that they have for a run.

    Args:
        preset_to: where the preset is written besides ``best.yaml`` of the search.
    """
    trials, metric = found.trials(), found.config.tune.metric
    best = found.best(trials)
    preset = None
    if best is not None:
        text, uri = preset_of(found, best), storage.join(found.uri, records.BEST_PRESET)
        storage.write_text(uri, text)
        local = preset_to or (PRESETS / f"{found.search_id}.yaml" if storage.is_remote(uri) else None)
        if local is not None:
            storage.write_text(str(local), text)
        preset = str(local or uri)
    summary = {
        "search_id": found.search_id,
        "run_id": best.run_id if best else None,
        "storage": found.config.storage,
        "steps": best.step if best else None,
        "metrics": best.scores[-1]["metrics"] if best else None,
        "model": None,  # a search registers nothing: that is left to a run of its preset
        "metric": metric,
        "trials": [_row(trial, found) for trial in trials],
        "best": _row(best, found) if best else None,
        "preset": preset,
        "report": report_uri,
    }
    records.SUMMARY.write(found.uri, summary)
    return summary


def _row(trial: Trial, found: Search) -> dict[str, Any]:
    values = {one.key: trial.values.get(one.key, base_value(found, one.key)) for one in found.ranges}
    return {
        "trial": trial.number,
        "state": trial.state,
        "step": trial.step,
        found.config.tune.metric: trial.value(found.config.tune.metric),
        "values": values,
        "run_id": trial.run_id,
        "message": trial.message,
    }


def base_value(found: Search, key: str) -> Any:
    """What the configuration itself says, which is what trial 0 has."""
    from pipeline.tune import space

    return space.value_of(found.config, key)


def _scores(found: Search) -> int:
    """Grows with every score, so that a job that was lost is started again for as long as it gets on."""
    return sum(len(trial.scores) for trial in found.trials())
