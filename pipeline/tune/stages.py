"""The stages of ``agit tune`` as plain functions: search and report; data preparation is that of a run."""

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
"""Local folder for presets of searches in object storage, because ``agit run`` reads local files."""


def check(config: Config) -> None:
    """Validate the search space before any data is prepared.

    Raises:
        BadInput: see :func:`pipeline.tune.space.ranges`.
    """
    from pipeline.tune import space

    space.ranges(config)


def search(config: Config, data: Data) -> Search:
    """Run the trials, resume them, or reuse a finished search.

    Raises:
        BadInput: the space or the configuration is invalid.
        RunFailed: the job did not finish; the same call resumes it.
    """
    opened = Search.of(config, data.uri)
    with progress.stage("tune") as stage:
        if done(opened):
            stage.reuse(f"finished search {opened.search_id}")
        else:
            spec = specs.spec_of(config, opened.data_uri, opened.search_id)
            spec = spec.but(run_uri=opened.uri, job="pipeline.tune.job")
            # an outdated result: of fewer trials, or with failed ones
            storage.remove(records.JOB_RESULT.uri(opened.uri))
            follow.run_job(config, spec, Allowance(lambda: _scores(opened), config.train.max_failures), stage)
            stage.message = f"{config.tune.trials} trials, search {opened.search_id}"
    return opened


def done(search: Search) -> bool:
    """Whether all requested trials have ended without a failure."""
    result = records.JOB_RESULT.peek(search.uri)
    if result is None or result["trials"] != search.config.tune.trials:
        return False
    return all(trial.state != "failed" for trial in search.trials())


def report(search: Search) -> str:
    """Build the search's report and return its URI."""
    from pipeline.tune.report import build

    with progress.stage("report") as stage:
        uri = stage.message = build(search)
    return uri


def summarize(search: Search, report_uri: str, preset_to: Path | None = None) -> dict[str, Any]:
    """Write the best trial's preset and the search's ``summary.json``, the object that ``--json`` prints.

    ``run_id``, ``steps`` and ``metrics`` are those of the best trial, under the same names as for a run.

    Args:
        preset_to: file to write the preset to, in addition to the search's ``best.yaml``.
    """
    trials, metric = search.trials(), search.config.tune.metric
    best = search.best(trials)
    preset = None
    if best is not None:
        text, uri = preset_of(search, best), storage.join(search.uri, records.BEST_PRESET)
        storage.write_text(uri, text)
        local = preset_to or (PRESETS / f"{search.search_id}.yaml" if storage.is_remote(uri) else None)
        if local is not None:
            storage.write_text(str(local), text)
        preset = str(local or uri)
    summary = {
        "search_id": search.search_id,
        "run_id": best.run_id if best else None,
        "storage": search.config.storage,
        "steps": best.step if best else None,
        "metrics": best.scores[-1]["metrics"] if best else None,
        "model": None,  # a search registers no model; a run of its preset does
        "metric": metric,
        "trials": [_row(trial, search) for trial in trials],
        "best": _row(best, search) if best else None,
        "preset": preset,
        "report": report_uri,
    }
    records.SEARCH_SUMMARY.write(search.uri, summary)
    return summary


def _row(trial: Trial, search: Search) -> dict[str, Any]:
    values = {one.key: trial.values.get(one.key, base_value(search, one.key)) for one in search.ranges}
    return {
        "trial": trial.number,
        "state": trial.state,
        "step": trial.step,
        search.config.tune.metric: trial.value(search.config.tune.metric),
        "values": values,
        "run_id": trial.run_id,
        "message": trial.message,
    }


def base_value(search: Search, key: str) -> Any:
    """Value of a setting in the configuration itself, i.e. in trial 0."""
    from pipeline.tune import space

    return space.value_of(search.config, key)


def _scores(search: Search) -> int:
    """Number of scores so far: the measure of progress by which a lost job is restarted."""
    return sum(len(trial.scores) for trial in search.trials())
