"""The Prefect flow ``agit`` and its five tasks, each of which calls one plain function.

This module adds only names, retries, limits and artifacts; ``pipeline.tasks`` does the work without Prefect.
"""

# no `from __future__ import annotations`: `flow.serve` pickles the flow by value, and Prefect could not resolve string
# annotations in the other process
import time
from typing import Annotated, Any, Literal

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from agit_core.errors import RunFailed
from pipeline import retrain, tasks
from pipeline.config import Config, load, presets
from pipeline.flows import artifacts, limits, log, secret_overrides
from pipeline.records import Data, Evaluation, Registration, Run

RETRY_SECONDS = [2, 10]
# exceptions of storage and tracking clients for network failures, the only ones worth a retry
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
    """Whether a failure was caused by the network and is worth a retry."""
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


task_options: dict[str, Any] = {
    "retries": len(RETRY_SECONDS),
    "retry_delay_seconds": RETRY_SECONDS,
    "retry_condition_fn": _retry,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


@task(name="prepare", task_run_name="prepare {config.name}", **task_options)
def prepare(config: Config) -> Data:
    return tasks.prepare(config)


# no Prefect retries: the job itself restarts lost workers and resumes from the last checkpoint
@task(
    name="train",
    task_run_name="train {config.name}",
    tags=["train"],
    cache_policy=NO_CACHE,
    persist_result=False,
)
def train(config: Config, data: Data) -> Run:
    with limits.slot(config), artifacts.progress_of("train"):
        return tasks.train(config, data)


@task(name="evaluate", task_run_name="evaluate {run.run_id}", **task_options)
def evaluate(config: Config, data: Data, run: Run) -> Evaluation:
    with artifacts.progress_of("evaluate"):
        evaluation = tasks.evaluate(config, data, run)
    artifacts.scores(run, evaluation)
    return evaluation


@task(name="register", task_run_name="register {run.run_id}", **task_options)
def register(config: Config, data: Data, run: Run, evaluation: Evaluation) -> Registration:
    return tasks.register(config, data, run, evaluation)


@task(name="report", task_run_name="report {run.run_id}", **task_options)
def report(config: Config, data: Data, run: Run) -> str:
    uri = tasks.report(config, data, run.uri)
    artifacts.report_link(run, uri)
    artifacts.samples(run)
    return uri


def resolve(
    config: str,
    overrides: list[str],
    storage: str | None,
    max_steps: int | None,
    cluster: str | None = None,
) -> Config:
    """Load the configuration given by the flow's parameters."""
    extra = [f"storage={storage}"] if storage else []
    extra += [f"cluster.address={cluster}"] if cluster else []
    extra += [f"train.max_steps={max_steps}"] if max_steps else []
    return load(config, [*secret_overrides.whole(overrides), *extra])


def _run_name() -> str:
    given = flow_run.parameters
    what = "retrain" if given.get("only_when_changed") else "train"
    return f"{what} {given.get('config', 'demo')} {time.strftime('%Y-%m-%d %H:%M:%S')}"


# constraints of Prefect's parameter form; its texts come from the flow's docstring
ConfigName = Annotated[str, Field(min_length=1, examples=presets())]
Overrides = Annotated[
    list[Annotated[str, Field(pattern=r"^\s*[A-Za-z_][A-Za-z0-9_.-]*\s*=")]],
    Field(examples=[["train.max_steps=1000", "seed=1"]]),
]
StorageUri = Annotated[str | None, Field(examples=["s3://bucket/prefix"])]
Cluster = Annotated[str | None, Field(pattern=r"^(https?://\S+)?$", examples=["http://ray-head:8265"])]
Steps = Annotated[int | None, Field(ge=1)]


@flow(name="agit", flow_run_name=_run_name, persist_result=False)
def agit(
    config: ConfigName = "demo",
    overrides: Overrides = [],  # noqa: B006 - Prefect copies parameters, and the form needs a list
    storage: StorageUri = None,
    cluster: Cluster = None,
    max_steps: Steps = None,
    only_when_changed: bool = False,
    start_from: Literal["config", "scratch", "champion"] = "config",
) -> dict[str, Any]:
    """Prepare images, train, score, register and report; running it again reuses finished stages.

    Args:
        config: A preset's name (demo, h2z, ...) or the path of a YAML file on the machine that runs the flow.
        overrides: Settings to override, one key=value each, as for `agit run --set`: `train.workers=4`.
        storage: Folder or s3://bucket/prefix for all output of the run; empty: the configuration's.
        cluster: Jobs address of the Ray cluster that prepares, trains and scores; empty: the configuration's, or
            else the worker's machine.
        max_steps: Stop training after this many steps; empty: the configuration's epochs.
        only_when_changed: Skip the training unless images or settings differ from the newest version's.
        start_from: Initial weights. config: those of train.start_from; scratch: random; champion: the champion's,
            or random if there is none.

    Returns:
        the run's summary; with ``only_when_changed``, the decision (``retrain``) in addition or alone.
    """
    with log.in_worker():
        settings = resolve(config, overrides, storage, max_steps, cluster)
        tasks.check_registration(settings)
        data = prepare(settings)
        decision = retrain.decide(settings, data, start_from, only_when_changed)
        if only_when_changed:
            artifacts.decision(settings, decision)
        if not decision.train:
            # a distinct state name, so that skipped trainings are recognisable in the UI
            skipped = {"retrain": decision.plain()}
            return Completed(name="Skipped", message=decision.reason, data=skipped)  # type: ignore[return-value]
        settings = decision.config
        tasks.check_scorable(settings, data)
        run = train(settings, data)
        evaluation = evaluate(settings, data, run)
        registration = register(settings, data, run, evaluation)
        report_uri = report(settings, data, run)
        summary = tasks.summarize(settings, run, evaluation, registration, report_uri).plain()
        return {**summary, "retrain": decision.plain()} if only_when_changed else summary
