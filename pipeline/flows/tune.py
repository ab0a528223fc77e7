"""The Prefect flow ``agit-tune``, whose tasks call the plain functions of ``pipeline.tune.stages``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import Field

from pipeline.config import Config
from pipeline.flows import artifacts, limits, log, train
from pipeline.flows.train import Cluster, ConfigName, Overrides, StorageUri
from pipeline.records import Data
from pipeline.tune import stages
from pipeline.tune.search import Search


# no Prefect retries: the job retries and resumes itself
@task(
    name="tune",
    task_run_name="tune {config.name}",
    tags=["train"],
    cache_policy=NO_CACHE,
    persist_result=False,
)
def search(config: Config, data: Data) -> Search:
    with limits.slot(config), artifacts.progress_of("tune"):
        return stages.search(config, data)


@task(name="report", task_run_name="report {found.search_id}", **train.task_options)
def report(found: Search, preset: str | None) -> dict[str, Any]:
    uri = stages.report(found)
    summary = stages.summarize(found, uri, Path(preset) if preset else None)
    artifacts.search(summary)
    return summary


def _run_name() -> str:
    given = flow_run.parameters
    return f"tune {given.get('config', 'demo')} {time.strftime('%Y-%m-%d %H:%M:%S')}"


@flow(name="agit-tune", flow_run_name=_run_name, persist_result=False)
def agit_tune(
    config: ConfigName = "demo",
    overrides: Overrides = [],  # noqa: B006 - Prefect copies parameters, and the form needs a list
    storage: StorageUri = None,
    cluster: Cluster = None,
    trials: Annotated[int | None, Field(ge=1)] = None,
    preset: str | None = None,
) -> dict[str, Any]:
    """Search tune.space for better settings; running it again with the same parameters resumes the search.

    Args:
        config: A preset's name (demo, h2z, ...) or the path of a YAML file on the machine that runs the flow.
        overrides: Settings to override, one key=value each, as for `agit tune --set`: `tune.concurrent=4`.
        storage: Folder or s3://bucket/prefix for all output of the search; empty: the configuration's.
        cluster: Jobs address of the Ray cluster to train on; empty: the configuration's, or else a private Ray
            instance on the worker's machine.
        trials: Number of trials; empty: tune.trials of the configuration. A larger number extends the search.
        preset: File for the best configuration, which is also stored as best.yaml of the search.
    """
    with log.in_worker():
        extra = [f"tune.trials={trials}"] if trials else []
        settings = train.resolve(config, [*overrides, *extra], storage, None, cluster)
        stages.check(settings)
        data = train.prepare(settings)
        return report(search(settings, data), preset)
