"""Prefect's view of the journey: flow ``agit`` and its five tasks, each of which calls one plain function.

Nothing is decided here but what Prefect is for: names, retries, limits and artifacts. ``pipeline.journey``
does the same without Prefect.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run
from pydantic import Field

from agit_core.errors import RunFailed
from pipeline import flow_artifacts as artifacts
from pipeline import flow_logging, journey, progress, retrain
from pipeline.config import Config, load
from pipeline.journey import Data, Run

RETRY_SECONDS = [2, 10]
# What storage and tracking clients raise when the other side does not answer; nothing else gets better by waiting.
_NETWORK_ERRORS = {
    "ConnectionError",
    "TimeoutError",
    "HTTPClientError",
    "ClientConnectorError",
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "RequestException",
}


def may_pass_by_itself(error: BaseException) -> bool:
    """True for a failure that came from a network that did not answer."""
    if not isinstance(error, RunFailed):
        return False
    link: BaseException | None = error
    while link is not None:
        if _NETWORK_ERRORS & {kind.__name__ for kind in type(link).__mro__}:
            return True
        link = link.__cause__ or link.__context__
    return False


def _retry(_task: Any, _task_run: Any, state: Any) -> bool:
    try:
        state.result()
    except Exception as error:
        return may_pass_by_itself(error)
    return False


_options: dict[str, Any] = {
    "retries": len(RETRY_SECONDS),
    "retry_delay_seconds": RETRY_SECONDS,
    "retry_condition_fn": _retry,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


@task(name="prepare", task_run_name="prepare {config.name}", **_options)
def prepare(config: Config) -> Data:
    return journey.prepare(config)


# Ray restarts lost workers and resumes from the last checkpoint; another try from outside would only repeat.
@task(
    name="train",
    task_run_name="train {config.name}",
    tags=["train"],
    cache_policy=NO_CACHE,
    persist_result=False,
)
def train(config: Config, data: Data) -> Run:
    with concurrency(artifacts.limit_of(config), occupy=1), progress.listening(artifacts.Progress("train")):
        return journey.train(config, data)


@task(name="evaluate", task_run_name="evaluate {run.run_id}", **_options)
def evaluate(config: Config, data: Data, run: Run) -> dict[str, Any]:
    with progress.listening(artifacts.Progress("evaluate")):
        evaluation = journey.evaluate(config, data, run)
    artifacts.scores(run, evaluation)
    return evaluation


@task(name="register", task_run_name="register {run.run_id}", **_options)
def register(config: Config, data: Data, run: Run, evaluation: dict[str, Any]) -> dict[str, Any]:
    return journey.register(config, data, run, evaluation)


@task(name="report", task_run_name="report {run.run_id}", **_options)
def report(config: Config, data: Data, run: Run) -> str:
    uri = journey.report(config, data, run)
    artifacts.report_link(run, uri)
    artifacts.samples(run)
    return uri


def resolve(config: str, overrides: list[str], storage: str | None, max_steps: int | None) -> Config:
    """The configuration that a form's fields describe."""
    extra = [f"storage={storage}"] if storage else []
    extra += [f"train.max_steps={max_steps}"] if max_steps else []
    return load(config, [*overrides, *extra])


def _run_name() -> str:
    given = flow_run.parameters
    what = "retrain" if given.get("only_when_changed") else "train"
    return f"{what} {given.get('config', 'demo')} {time.strftime('%Y-%m-%d %H:%M:%S')}"


ConfigName = Annotated[str, Field(description="A preset's name (demo, h2z, ...) or the path of a YAML file.")]
Overrides = Annotated[
    list[str], Field(description="Settings that differ, as key=value: train.workers=4, data.source=s3://...")
]
StorageUri = Annotated[
    str | None,
    Field(description="Folder or s3:// prefix for everything the run writes; empty: the config's."),
]
Steps = Annotated[
    int | None, Field(ge=1, description="Stop training after this many steps; empty: the config's epochs.")
]


@flow(name="agit", flow_run_name=_run_name, persist_result=False)
def agit(
    config: ConfigName = "demo",
    overrides: Overrides = [],  # noqa: B006 - Prefect copies parameters, and the form needs a list
    storage: StorageUri = None,
    max_steps: Steps = None,
    only_when_changed: Annotated[
        bool, Field(description="Train only when images or settings differ from the newest version's.")
    ] = False,
    start_from: Annotated[
        Literal["config", "scratch", "champion"],
        Field(description="Weights that a training starts from; config: what train.start_from says."),
    ] = "config",
) -> dict[str, Any]:
    """Prepares images, trains, scores, registers and reports; a second run reuses what is done."""
    with flow_logging.in_worker():
        settings = resolve(config, overrides, storage, max_steps)
        data = prepare(settings)
        decision = retrain.decide(settings, data, start_from, only_when_changed)
        if not decision.train:
            return {"retrain": decision.plain()}
        settings = decision.config
        run = train(settings, data)
        evaluation = evaluate(settings, data, run)
        registration = register(settings, data, run, evaluation)
        report_uri = report(settings, data, run)
        summary = journey.summarize(settings, run, evaluation, registration, report_uri)
        return {**summary, "retrain": decision.plain()} if only_when_changed else summary
