"""The five stages of a run as plain functions that reuse finished work.

prepare -> train -> evaluate -> register -> report: each function takes the results of the previous ones, reads and
writes URIs under ``config.storage``, and works without Prefect. Repeating a finished stage only reads the storage:
prepared data is found by its fingerprint, a finished training by its ``result.json``, an evaluation by its checkpoint
and settings, a registration by its source.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from typing import Any, TypeVar

from agit_core.errors import BadInput, RunFailed
from pipeline import logs, progress, records, storage
from pipeline.config import Config, fingerprint
from pipeline.metrics import catalog
from pipeline.metrics.catalog import DIRECTIONS, KID_TARGET
from pipeline.records import (
    DONE,
    EVALUATION,
    REGISTRATION,
    REPORT,
    RESULT,
    SUMMARY,
    Data,
    Evaluation,
    Finished,
    Manifest,
    RegisteredModel,
    Registration,
    Result,
    Run,
    Split,
    Summary,
)
from pipeline.registry import lineage

T = TypeVar("T")


def prepare(config: Config) -> Data:
    """Prepare the source as shards, or find them prepared.

    Raises:
        BadInput: the storage or the source cannot be used.
    """
    with progress.stage("prepare") as stage:
        storage.check_reachable(config.storage)
        prepared = _prepared(config, stage)
        splits = prepared.manifest.splits
        counts = ", ".join(f"{name} {split.rows}" for name, split in splits.items())
        aside = _named(splits, "quarantined")
        copies = prepared.manifest.duplicates.exact_groups
        leaks = len(prepared.manifest.leaks)
        kept = prepared.manifest.kept
        remarks = _named(splits, "notes")
        parts = [f"{counts} images"]
        if aside:
            parts.append(f"{len(aside)} quarantined (such as {aside[0]}; see the manifest)")
        if remarks:
            parts.append(f"{len(remarks)} used with a remark (such as {remarks[0]})")
        if left := prepared.manifest.left_out:
            parts.append(f"{len(left)} left out (such as {left[0]['name']}: {left[0]['reason']})")
        if copies:
            parts.append(f"{copies} groups of equal files")
        if leaks:
            parts.append(f"{leaks} of a test and a training image")
        if kept and not prepared.reused:
            parts.append(f"{kept} taken over from the data set before")
        stage.message = ", ".join(parts)
        if prepared.reused:
            stage.reuse(f"prepared data {storage.name(prepared.uri)} ({stage.message})")
    return Data(prepared.uri, prepared.manifest, prepared.reused)


def _prepared(config: Config, stage: progress.Stage) -> Data:
    """Here, or as a job of the cluster unless only this machine has the images."""
    if config.cluster.address is not None and not _only_here(config):
        from pipeline.data.format import manifest
        from pipeline.launch import stages

        done = stages.submit(config, "prepare", stage)
        uri = storage.join(config.storage, "data", done["name"])
        return Data(uri, manifest.read(uri), done["reused"])
    from pipeline.data.prepare.stage import prepare as run_stage

    made = run_stage(config, stage)
    return Data(made.uri, made.manifest, made.reused)


def _only_here(config: Config) -> bool:
    """Whether the images lie in a folder of this machine while everything else is in object storage.

    Where the storage is a folder, too, the nodes share it (or are this machine), and so the images.
    """
    from pipeline.data.sources.opening import absolute

    parts = absolute(config.data.source).split(",")
    return storage.is_remote(config.storage) and any(os.path.exists(part.strip()) for part in parts)


def _apart(config: Config, function: Callable[..., T], *arguments: Any) -> T:
    """``function(config, *arguments)``, which needs torch.

    With a cluster in a process that ends with it: the flow's own lives for days and is to stay small.
    """
    if config.cluster.address is None:
        return function(config, *arguments)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, config, *arguments).result()
        except BrokenProcessPool:
            raise RunFailed(
                "the process that registers or reports was killed (out of memory?); run the same command again"
            ) from None


def _register(config: Config, run_uri: str, evaluation: Evaluation, origin: dict[str, Any]) -> Registration:
    from pipeline.registry.registration import register

    return register(config, run_uri, evaluation, origin)


def _build_report(config: Config, run_uri: str, data_uri: str) -> str:
    from pipeline.report.build import build

    return build(config, run_uri, data_uri)


def _scored(config: Config, uri: str, data_uri: str, stage: progress.Stage) -> Evaluation:
    """The evaluation of a model, made here or by a job of the cluster, which does not reach the registry."""
    if config.cluster.address is not None:
        from pipeline.launch import stages
        from pipeline.launch.specs import absolute
        from pipeline.registry import models

        champion = models.champion(config)
        if champion is not None:
            champion |= {"uri": absolute(champion["uri"])}
        model = models.resolve(uri, config)
        model = model if ":" in model else absolute(model)
        scored = stages.submit(
            config, "evaluate", stage, uri=model, data_uri=absolute(data_uri), champion=champion
        )
        return Evaluation.model_validate(scored)
    from pipeline.evaluate.scoring import evaluate as run_stage

    return run_stage(config, uri, data_uri, stage)


def _named(splits: dict[str, Split], kind: str) -> list[str]:
    """All entries of a manifest in ``quarantined`` or in ``notes``, with their reasons."""
    return [
        f"{name}/{entry['name']}: {entry['reason']}"
        for name, split in splits.items()
        for entry in getattr(split, kind)
    ]


def find_prepared(config: Config) -> Data:
    """Find the prepared data of an existing run's configuration, without preparing anything.

    Raises:
        BadInput: it is not prepared, so there is no run either.
    """
    from pipeline.data.prepare.stage import find as run_stage

    with progress.stage("prepare") as stage:
        storage.check_reachable(config.storage)
        found = run_stage(config, stage)
        if found is None:
            raise BadInput(
                f"{config.storage} has no run of these settings, nor their data prepared; run `agit train` with the "
                "same settings"
            )
        stage.reuse(f"prepared data {storage.name(found.uri)}")
    return Data(found.uri, found.manifest, reused=True)


def check_registration(config: Config) -> None:
    """Check, before preparation and training, that the registry will accept the model and the gate can judge it.

    Raises:
        BadInput: an MLflow server with local storage, or a gate on metrics that are not measured.
    """
    from pipeline.registry import gate, tracking

    gate.check(config.register_.gate)
    tracking.check_storage(config)


def check_scorable(config: Config, data: Data) -> None:
    """Check, before training, that there are enough test images for scoring.

    Raises:
        BadInput: fewer than two test images of a domain.
    """
    from pipeline.evaluate.counting import count_test_images

    for domain in "ab":
        count_test_images(config, data.uri, data.manifest, domain)


def locate(config: Config, data: Data) -> tuple[str, str]:
    """``(run_id, run_uri)`` of this configuration on this data, started or not."""
    from pipeline.launch.specs import absolute, run_id

    name = run_id(config, data.manifest)
    logs.bind(run_id=name)
    return name, records.run_uri(absolute(config.storage), name)


def train(config: Config, data: Data, start: str | None = None) -> Run:
    """Train, resume, or reuse a finished training.

    A finished one whose model is damaged, before it was registered, resumes from the newest intact checkpoint.

    Args:
        start: folder of the initial weights, if ``train.start_from`` no longer refers to it.

    Raises:
        RunFailed: the job did not finish; the same call resumes it.
    """
    from pipeline.launch.follow import train as run_stage
    from pipeline.live.feed import reporting
    from pipeline.train import events
    from pipeline.train.damage import damage, mark

    name, uri = locate(config, data)
    with progress.stage("train") as stage:
        done = RESULT.peek(uri)
        if done is not None and (reason := damage(done.model)) and not _registered(uri):
            events.record(uri, "checkpoint_damaged", f"the checkpoint of its model is damaged ({reason})")
            mark(done.model, reason)
            storage.remove(RESULT.uri(uri))  # the job resumes from the newest intact one
            done = None
        if done is None:
            with reporting(config, name, uri) as report:

                def show(event: dict[str, Any]) -> None:
                    stage(event)
                    report(event)

                done = run_stage(config, data.uri, show, start).result
            stage.message = f"{done.steps} steps, run {name}"
        else:
            stage.reuse(f"finished training {name} ({done.steps} steps)")
    return Run(name, uri, done, stage.reused)


def _registered(uri: str) -> bool:
    """Whether a run's model is scored and registered, so that its checkpoints are needed no more."""
    registration = REGISTRATION.peek(uri)
    return (
        registration is not None
        and EVALUATION.peek(uri) is not None
        and storage.is_folder(registration.source)
    )


def trained(config: Config, data: Data) -> Run:
    """The finished training of this configuration.

    Raises:
        BadInput: there is none.
    """
    name, uri = locate(config, data)
    done = RESULT.read(uri)
    if done is None:
        raise BadInput(
            f"run {name} is not trained in {config.storage}; run `agit train` with the same settings"
        )
    return Run(name, uri, done, True)


def evaluate(config: Config, data: Data, run: Run) -> Evaluation:
    """Score the run's model on the test images, or reuse the stored scores.

    Scores are computed again if they were not compared with the current champion.

    Raises:
        BadInput: no Inception network is available.
        RunFailed: the storage does not respond.
    """
    from pipeline.train.damage import damage

    key = _evaluation_key(config, data.manifest, run.result)
    with progress.stage("evaluate") as stage:
        evaluation = EVALUATION.peek(run.uri)
        if evaluation is not None and evaluation.key == key and _compared(config, run, evaluation):
            stage.reuse("scores of this checkpoint")
        else:
            storage.sweep(run.uri)  # what an evaluation that was killed has left
            storage.sweep(storage.join(config.storage, "features"))
            if reason := damage(run.result.model):
                raise BadInput(
                    f"the checkpoint that is the model of run {run.run_id} is damaged ({reason}); remove "
                    f"{RESULT.uri(run.uri)} and run `agit train` with the same settings, which goes one checkpoint back"
                )
            evaluation = _scored(config, run.uri, data.uri, stage).but(key=key)
            EVALUATION.write(run.uri, evaluation)
        shown = scores_line(evaluation)
        stage.message = f"{stage.message}: {shown}" if stage.reused else shown
    return evaluation


def _evaluation_key(config: Config, manifest: Manifest, result: Result) -> str:
    """Hash of everything that a run's scores depend on, except the champion."""
    return fingerprint(
        {
            "checkpoint": result.model,
            "data": manifest.fingerprint,
            "evaluate": config.evaluate.model_dump(mode="json", exclude={"device", "batch_size", "workers"}),
            "threshold": config.method.threshold_at_test,
            "metrics": catalog.digest(),
        }
    )


def _compared(config: Config, run: Run, evaluation: Evaluation) -> bool:
    """Whether the scores include a comparison with the current champion, or that is this run's own model."""
    from pipeline.registry import models

    champion = models.champion(config)
    if champion is None:
        return True
    weights = evaluation.model.weights_sha256
    if weights is not None and weights == champion["weights_sha256"]:
        return True
    known = (REGISTRATION.peek(run.uri), evaluation.champion)
    return champion["version"] in {one.version for one in known if one is not None}


def evaluate_model(config: Config, data: Data, uri: str) -> Evaluation:
    """Score any model or checkpoint folder, or ``models:/name@alias``, on the test images.

    A run's own evaluation is not overwritten, since this one may use other images or settings.

    Raises:
        BadInput: no such model, or no Inception network is available.
        RunFailed: the storage does not respond.
    """
    with progress.stage("evaluate") as stage:
        evaluation = _scored(config, uri, data.uri, stage)
        stage.message = scores_line(evaluation)
    return evaluation


def register(config: Config, data: Data, run: Run, evaluation: Evaluation) -> Registration:
    """Register the model with its metrics and lineage; a run that is registered keeps its version.

    Raises:
        RunFailed: the tracking server does not respond.
    """
    with progress.stage("register") as stage:
        before = REGISTRATION.peek(run.uri)
        registration = _apart(config, _register, run.uri, evaluation, lineage.of(config, data, run))
        aliases = ", ".join(registration.aliases) or "no alias"
        stage.message = f"{registration.name} version {registration.version} ({aliases})"
        if before and (before.version, before.decision) == (registration.version, registration.decision):
            stage.reuse(stage.message)
    return registration


def report(config: Config, data: Data, run_uri: str) -> str:
    """Build the report of a finished or running run; return its URI."""
    with progress.stage("report") as stage:
        uri = _apart(config, _build_report, run_uri, data.uri)
        stage.message = uri
    return uri


def summarize(
    config: Config, run: Run, evaluation: Evaluation, registration: Registration, report_uri: str
) -> Summary:
    """Build the object that ``--json`` prints, and store it as the run's ``summary.json``."""
    model = RegisteredModel(
        name=registration.name, version=registration.version, aliases=registration.aliases
    )
    summary = Summary(
        run_id=run.run_id,
        storage=config.storage,
        steps=run.result.steps,
        metrics=evaluation.metrics,
        model=model,
        report=report_uri,
    )
    SUMMARY.write(run.uri, summary)
    DONE.write(run.uri, Finished(settings=_settings_key(config)))
    return summary


def already_done(config: Config) -> Summary | None:
    """The summary of a run whose five stages are all done and up to date, else None.

    A fast path that reads local files only, without importing torch, Prefect, Ray or MLflow; runs in object storage
    or on an MLflow server are left to the stages. The registry's SQLite file must be older than the summary,
    because a later change may concern versions, aliases or the champion.
    """
    from pipeline.data.prepare.stage import find
    from pipeline.registry import tracking

    database = tracking.database(tracking.tracking_uri(config))
    if storage.is_remote(config.storage) or database is None or not database.is_file():
        return None
    settings, registered = _settings_key(config), database.stat().st_mtime
    # list the source, which may be large, only if there is a finished run with exactly these settings
    done = {
        file.parent
        for file in storage.local_path(config.storage).glob(f"runs/*/{DONE.name}")
        if file.stat().st_mtime >= registered
        and (DONE.peek(str(file.parent)) or Finished()).settings == settings
    }
    found = find(config) if done else None
    if found is None:
        return None
    name, uri = locate(config, Data(found.uri, found.manifest, True))
    result, evaluation = RESULT.peek(uri), EVALUATION.peek(uri)
    registration, summary = REGISTRATION.peek(uri), SUMMARY.peek(uri)
    if result is None or evaluation is None or registration is None or summary is None:
        return None
    key = _evaluation_key(config, found.manifest, result)
    files = (summary.report, result.model, registration.source)
    if storage.local_path(uri) not in done or evaluation.key != key or not all(map(storage.exists, files)):
        return None
    for stage_name in progress.STAGES:
        with progress.stage(stage_name) as stage:
            stage.reuse(f"run {name} is done and nothing has changed")
    return summary


def _settings_key(config: Config) -> str:
    """Hash of the full configuration and the package version."""
    return fingerprint({"config": config.plain(), "version": metadata.version("agit")})


def known(config: Config, run_uri: str) -> dict[str, Any]:
    """``steps``, ``metrics``, ``model`` and ``report`` of a run; None for those that do not exist yet."""
    result, scores = RESULT.peek(run_uri), EVALUATION.peek(run_uri)
    registration, report_uri = REGISTRATION.peek(run_uri), storage.join(run_uri, REPORT)
    return {
        "steps": result.steps if result else None,
        "metrics": scores.metrics if scores else None,
        "model": _model(config, registration).plain() if registration else None,
        "report": report_uri if storage.exists(report_uri) else None,
    }


def _model(config: Config, registration: Registration) -> RegisteredModel:
    """Registered name and version, with the current aliases."""
    from pipeline.registry import tracking, versions

    name, version = registration.name, registration.version
    try:
        aliases = sorted(versions.get(tracking.tracking_uri(config), name, version).aliases)
    except (BadInput, RunFailed, LookupError):  # the registry is unavailable, which must not fail the command
        aliases = registration.aliases
    return RegisteredModel(name=name, version=version, aliases=aliases)


def scores_line(evaluation: Evaluation) -> str:
    """``a2b KID to the target × 100 9.10 (doing nothing 20.24), b2a ...``."""
    parts = []
    for direction in DIRECTIONS:
        key = KID_TARGET.key(direction)
        value, nothing = evaluation.metrics.get(key), evaluation.baseline.get(key)
        if value is not None:
            beside = f" (doing nothing {KID_TARGET.text(nothing)})" if nothing is not None else ""
            parts.append(f"{direction} {KID_TARGET.label} {KID_TARGET.text(value)}{beside}")
    return ", ".join(parts) or "scored"
