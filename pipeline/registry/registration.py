"""Registration of a finished run's model as a version, with its lineage and scores, and the gate's decision."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agit_core import model_folder
from agit_core.errors import BadInput, RunFailed
from pipeline import records, storage
from pipeline.config import Config, fingerprint
from pipeline.inference import model_card
from pipeline.records import Evaluation, GateDecision, Registration, Tracked
from pipeline.redact import redact
from pipeline.registry import audit, files, gate, tracking, versions
from pipeline.registry import lineage as code_lineage
from pipeline.registry.identity import weights_digest
from pipeline.registry.models import CHALLENGER, CHAMPION, model_name
from pipeline.registry.tracking import client, explained, tracking_uri

_STATE, _REGISTERED = "agit.state", "registered"
"""A version's tag, and its value once the gate's decision has been carried out."""
_BY_PEOPLE = ("agit.promote", "agit.rollback")
"""Tags of a version that was made champion manually."""


def register(
    config: Config, run_uri: str, evaluation: Evaluation, lineage: Mapping[str, Any] | None = None
) -> Registration:
    """Register a finished run's model as a version and apply the gate's decision.

    Idempotent: the same weights of the same run are registered once, a second call returns the existing version, and
    an interrupted call is completed by the next one. A version that has never been champion is judged again if its
    evaluation or the gate's policy has changed.

    Args:
        lineage: JSON-ready; written into the model folder and the tags.

    Returns:
        The run's registration, which is also written to its folder.

    Raises:
        BadInput: the run is not finished.
        RunFailed: the storage or the tracking server does not respond.
    """
    run = _Finished.read(config, run_uri, evaluation, lineage)
    name, uri = run.name, tracking_uri(config)
    with tracking.alone(uri, name):
        version = _version(uri, run)
        basis = _basis(config, evaluation)
        if not _settled(version, basis):
            _decide(config, uri, version, evaluation, basis)
            version = versions.get(uri, name, int(version.version))
    registration = Registration(
        name=name,
        version=int(version.version),
        aliases=sorted(version.aliases),
        decision=_decided(version),
        source=version.source,
        mlflow=Tracked(tracking_uri=redact(uri), run_id=version.run_id),
        lineage=run.lineage,
    )
    records.REGISTRATION.write(run_uri, registration)
    return registration


@dataclass(frozen=True)
class _Finished:
    """A finished run to be registered."""

    config: Config
    uri: str
    run_id: str
    checkpoint: str
    model: model_folder.Model
    digest: str
    evaluation: Evaluation
    lineage: dict[str, Any]

    @property
    def name(self) -> str:
        return model_name(self.config)

    @staticmethod
    def read(
        config: Config, uri: str, evaluation: Evaluation, lineage: Mapping[str, Any] | None
    ) -> _Finished:
        result = records.RESULT.read(uri)
        if result is None:
            raise BadInput(f"the run at {uri} is not finished; finish it before registering its model")
        run_id, checkpoint = result.run_id or storage.name(uri), result.model
        model = model_folder.read(checkpoint)
        origin = redact(dict(lineage or {"run_id": run_id, "run_uri": uri}))
        origin.setdefault("code", code_lineage.code_version())
        return _Finished(config, uri, run_id, checkpoint, model, weights_digest(model), evaluation, origin)


def _version(uri: str, run: _Finished) -> Any:
    """The version of these weights, existing or newly created.

    A missing model folder is written again; if that is now in another storage, a new version is created for it.
    """
    existing = versions.of_weights(uri, run.name, run.run_id, run.digest)
    for version in existing:
        if _holds_model(str(version.source)):
            return version
    source = _write_folder(run)
    same = next((version for version in existing if version.source == source), None)
    return same or _create(uri, run, source)


def _holds_model(source: str) -> bool:
    try:
        return storage.exists(storage.join(source, model_folder.MANIFEST))
    except (
        BadInput,
        RunFailed,
    ):  # another storage than this run's, and it is unreachable: assume that it does
        return True


def _write_folder(run: _Finished) -> str:
    """Write the version's model folder, ``model.json`` (which makes it valid) last; return its URI."""
    uri = storage.join(run.config.storage, "models", run.name, run.run_id)
    if not storage.is_remote(uri):
        uri = str(storage.local_path(uri))  # absolute: the registry is read from other working directories
    manifest_uri = storage.join(uri, model_folder.MANIFEST)
    if storage.exists(manifest_uri):
        stored = None
        with contextlib.suppress(ValueError, AttributeError):
            stored = storage.read_json(manifest_uri).get("lineage", {}).get("weights_sha256")
        if stored == run.digest:
            return uri
        # damaged, or the run was trained again with a different result: the earlier version keeps its folder
        uri = f"{uri}-{run.digest[:8]}"
    from pipeline.serve import pyfunc  # imported late: pulls in pandas and MLflow's servers

    model = replace(run.model, name=run.name, lineage={**run.lineage, "weights_sha256": run.digest})
    card = model_card.render(model, run.evaluation, manifest=model_card.manifest_of(model))
    extra = {
        model_card.SCORES: json.dumps(run.evaluation.quoted(), indent=1).encode(),
        model_card.FILE: card.encode(),
        pyfunc.FILE: pyfunc.mlmodel(model).encode(),
    }
    with tempfile.TemporaryDirectory(prefix="agit-model-") as folder:
        model_folder.write(
            folder, model.name, model.method, model.image_size, model.weights, model.lineage, extra
        )
        manifest = Path(folder) / model_folder.MANIFEST
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file() and path != manifest:
                storage.upload_file(path, storage.join(uri, path.relative_to(folder).as_posix()))
        storage.sweep(uri)
        storage.upload_file(manifest, storage.join(uri, model_folder.MANIFEST))
    return uri


def _create(uri: str, run: _Finished, source: str) -> Any:
    """Log the run to MLflow and create its version, with the locations of its parts as tags."""
    code, data = run.lineage.get("code") or {}, run.evaluation.data
    tags = {
        "agit.key": f"{run.run_id}-{run.digest[:12]}",
        "agit.run_id": run.run_id,
        "agit.weights_sha256": run.digest,
        "agit.directions": ",".join(model_folder.DIRECTIONS),
        "agit.run_uri": run.uri,
        "agit.checkpoint": run.checkpoint,
        "agit.model_uri": source,
        "agit.report_uri": storage.join(run.uri, records.REPORT),
        "agit.data_uri": str(run.lineage.get("data_uri") or data.get("uri") or ""),
        "agit.data_fingerprint": str(run.lineage.get("data_fingerprint") or data.get("fingerprint") or ""),
        "agit.code": str(code.get("git_commit") or code.get("version") or "unknown"),
        "agit.inception_sha256": str(run.evaluation.inception.get("sha256") or ""),
    }
    tags = {key: str(redact(value)) for key, value in tags.items() if value}
    commit = str(code.get("git_commit") or "")
    of_mlflow = {
        "mlflow.note.content": files.note(tags),
        "mlflow.source.name": "agit",
        "mlflow.source.type": "JOB",
        **({"mlflow.source.git.commit": commit} if commit else {}),
    }
    metrics = run.evaluation.metrics
    mlflow_run = tracking.log_run(
        uri,
        experiment=run.config.name,
        artifacts=tracking.artifact_location(run.config),
        run_name=run.run_id,
        parameters=run.config.plain(),
        tags=tags | of_mlflow,
        rows=records.metric_rows(run.uri)[0],
        metrics=metrics,
        data={
            "name": run.config.name,
            "fingerprint": tags.get("agit.data_fingerprint", "unknown"),
            "uri": tags.get("agit.data_uri", ""),
        },
        files=files.of_run(run.uri, run.config.plain(), run.evaluation, run.lineage),
    )
    connection = client(uri)
    with explained(uri):
        if not connection.search_registered_models(f"name = '{run.name}'"):
            connection.create_registered_model(run.name)
        return connection.create_model_version(
            run.name, source, run_id=mlflow_run, tags=tags | {"agit.metrics": json.dumps(metrics)}
        )


def _basis(config: Config, evaluation: Evaluation) -> str:
    """Fingerprint of a decision's inputs: policy, metrics, and the champion's metrics in the evaluation."""
    champion = evaluation.champion
    figures = [evaluation.metrics, evaluation.baseline, evaluation.intervals]
    against = [champion.version, champion.metrics] if champion else [None, None]
    return fingerprint([config.register_.gate.model_dump(mode="json"), figures, against])


def _settled(version: Any, basis: str) -> bool:
    """Whether no decision is needed: the version has been champion, or was judged on the same basis."""
    if version.tags.get(_STATE) != _REGISTERED:
        return False
    decision = _decided(version)
    by_people = CHAMPION in version.aliases or not version.tags.keys().isdisjoint(_BY_PEOPLE)
    return bool(decision.promoted or by_people or decision.basis == basis)


def _decided(version: Any) -> GateDecision:
    return GateDecision.model_validate_json(version.tags["agit.decision"])


def _decide(config: Config, uri: str, version: Any, evaluation: Evaluation, basis: str) -> None:
    """Apply the gate's decision to a version.

    An interrupted call is completed with the stored decision, unless the basis or the champion has changed.
    """
    name, number = str(version.name), int(version.version)
    connection = client(uri)
    again = _STATE in version.tags
    if again:
        with explained(uri):
            connection.set_model_version_tag(name, str(number), _STATE, "deciding")
            metrics = json.dumps(evaluation.metrics)
            connection.set_model_version_tag(name, str(number), "agit.metrics", metrics)
    decision = _decided(version) if "agit.decision" in version.tags else None
    while True:
        champion = versions.holder(uri, name, CHAMPION)
        current = champion["version"] if champion else 0
        # re-read after each decision: a concurrent registration may have changed the champion meanwhile
        if decision is not None and (
            current == number or (decision.basis, decision.against) == (basis, current)
        ):
            break
        count = 1 if decision is None else decision.number + 1
        decided = gate.decide(config.register_.gate, evaluation, champion)
        decision = decided.but(against=current, basis=basis, number=count)
        with explained(uri):
            tag = json.dumps(decision.plain())
            connection.set_model_version_tag(name, str(number), "agit.decision", tag)
    previous = decision.against or None
    audit.record(
        config.storage,
        name,
        f"gate-v{number:05d}-{version.run_id[:8]}-against-v{previous or 0:05d}-{decision.number}",
        action="gate",
        version=number,
        mlflow_run_id=version.run_id,
        previous=previous,
        champion=number if decision.promoted else previous,
        decision=decision.plain(),
        policy=config.register_.gate.model_dump(mode="json"),
    )
    challenger = versions.holder(uri, name, CHALLENGER)
    newest = not again or challenger is None or challenger["version"] <= number
    with explained(uri):
        if decision.passed and newest:
            connection.set_registered_model_alias(name, CHALLENGER, str(number))
        if not decision.passed and challenger is not None and challenger["version"] == number:
            connection.delete_registered_model_alias(name, CHALLENGER)
        if decision.promoted:
            connection.set_registered_model_alias(name, CHAMPION, str(number))
        connection.set_model_version_tag(name, str(number), _STATE, _REGISTERED)
