"""MLflow access: one client per server or SQLite file, errors as one sentence, logging of finished runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from agit_core.errors import BadInput, RunFailed
from pipeline import storage
from pipeline.config import Config
from pipeline.redact import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

# must be set before MLflow is imported, or it creates an installation id in the home directory
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
# with the defaults (7 retries, 120 s each), an error takes minutes to appear
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

LOCAL_DATABASE = "mlflow.db"
LIVE = "agit.live"
"""A tag: the name of the training that an MLflow run shows, until the run is completed by the registration."""
PICTURED = "agit.pictured"
"""A tag: the last step whose sample pictures the run has."""
CURVE_POINTS = 500
"""Maximum number of rows to log, evenly spaced, of a training that was not tracked live; all remain in storage."""
_TURN_SECONDS = 600.0
_ABSENT = "RESOURCE_DOES_NOT_EXIST"
_PARAMETERS_PER_CALL, _METRICS_PER_CALL = 100, 1000
_LONGEST_PARAMETER = 6000
_LONGEST_DIGEST = 36


def tracking_uri(config: Config | None = None) -> str:
    """``register.tracking_uri``, else ``MLFLOW_TRACKING_URI``, else a SQLite file in the local storage.

    With ``s3://`` storage, the SQLite file is in ``./.agit``: a database cannot be in object storage.
    """
    configured = (config.register_.tracking_uri if config else None) or os.environ.get("MLFLOW_TRACKING_URI")
    if configured:
        return configured
    root = "./.agit" if config is None or storage.is_remote(config.storage) else config.storage
    return f"sqlite:///{storage.local_path(root) / LOCAL_DATABASE}"


def artifact_location(config: Config) -> str:
    """Where a new experiment's files go: ``mlflow-artifacts`` in the storage."""
    artifacts = storage.join(config.storage, "mlflow-artifacts")
    return artifacts if storage.is_remote(artifacts) else str(storage.local_path(artifacts))


def check_storage(config: Config) -> None:
    """Check that the registry accepts models from the configured storage.

    Raises:
        BadInput: the registry is an MLflow server, even a local one, and the storage is a local folder.
    """
    uri = tracking_uri(config)
    if uri.startswith(("http://", "https://")) and not storage.is_remote(config.storage):
        raise _local_folder(redact(uri))


def _local_folder(server: str) -> BadInput:
    return BadInput(
        f"the tracking server {server} does not accept models from a local folder; use storage=s3://... with a "
        "server, or set neither register.tracking_uri nor MLFLOW_TRACKING_URI"
    )


def database(uri: str) -> Path | None:
    """File of a SQLite tracking URI; None for a server."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@lru_cache(maxsize=8)
def client(uri: str) -> MlflowClient:
    """Client of a tracking URI; creates the SQLite file if there is none."""
    file = database(uri)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    with explained(uri):
        from mlflow import MlflowClient

        # otherwise MLflow logs every table that it creates
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Convert MLflow's errors.

    Raises:
        BadInput: the request was refused, or the database is damaged.
        RunFailed: no response, or a server error.
        LookupError: the requested object does not exist.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    shown = redact(uri)
    try:
        yield
    except MlflowException as error:
        text = redact(" ".join(str(error).split()))[:300]
        # MLflow reports an unknown alias as an invalid parameter
        if error.error_code == _ABSENT or ("alias" in text and "not found" in text):
            raise LookupError(text) from None
        if "model version source" in text:
            raise _local_folder(shown) from None
        if "error code 401" in text:
            raise BadInput(
                f"MLflow at {shown} asks for a password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
                "(for agit-stack: `. .agit/stack/env`), or MLFLOW_TRACKING_TOKEN"
            ) from None
        if error.error_code in {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "PERMISSION_DENIED"}:
            raise BadInput(f"MLflow at {shown} refused the request: {text}") from error
        raise RunFailed(
            f"MLflow at {shown} failed: {text}; check that it is running and try again"
        ) from error
    except (SQLAlchemyError, OSError) as error:
        text = redact(" ".join(str(error).split()))[:300]
        cause = getattr(error, "orig", None)
        if type(cause) is sqlite3.DatabaseError:  # not of a subclass, such as "locked"
            raise BadInput(
                f"MLflow's database {shown} is damaged ({cause}); restore a copy, or move it away: `agit run` with the "
                "settings of a run registers its model again"
            ) from None
        raise RunFailed(f"MLflow at {shown} cannot be used: {text}") from error


@contextlib.contextmanager
def alone(uri: str, name: str) -> Iterator[None]:
    """Change a model's versions or aliases while no other process of this user and machine does.

    MLflow has no transactions over several requests: two callers would both find no version and create one each.

    Raises:
        RunFailed: another process has not ended its change for minutes.
    """
    key = hashlib.sha256(f"{uri}\n{name}".encode()).hexdigest()[:16]
    try:
        with FileLock(
            storage.private_folder("agit-registry") / f"{key}.lock", _TURN_SECONDS, is_singleton=True
        ):
            yield
    except Timeout:
        raise RunFailed(
            f"another process has been changing model '{name}' for {_TURN_SECONDS:g} s; end it and try again"
        ) from None


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to dotted keys with string values."""
    settings: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            settings |= flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            settings[f"{prefix}{key}"] = text[:_LONGEST_PARAMETER]
    return settings


def _thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most :data:`CURVE_POINTS` of the rows; those with scores all stay."""
    if len(rows) <= CURVE_POINTS:
        return rows
    kept = {round(i * (len(rows) - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)}
    return [row for i, row in enumerate(rows) if i in kept or "validation" in row]


def _numbers(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{key}", float(value)


def log_run(
    uri: str,
    experiment: str,
    artifacts: str,
    run_name: str,
    parameters: dict[str, Any],
    tags: dict[str, str],
    rows: list[dict[str, Any]],
    metrics: dict[str, float | None],
    data: dict[str, Any],
    files: dict[str, bytes],
) -> str:
    """Log a finished run with settings, curves, scores, data set and files; return its MLflow run id.

    The run that tracked the training live is completed, if there is one. Others with the same key, left by an
    interrupted call, are deleted.

    Args:
        artifacts: artifact location of a new experiment; the pipeline's files stay in place, named by tags.
        tags: must include ``agit.key``, which identifies the registered weights.
        data: ``name``, ``fingerprint`` and ``uri`` of the training data.
        files: artifacts as path -> content.
    """
    connection = client(uri)
    with explained(uri):
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, RunTag

        experiment_id = _experiment(connection, experiment, artifacts)
        run = _live_run(connection, experiment_id, run_name)
        query = f"tags.`agit.key` = '{tags['agit.key']}'"
        for old in connection.search_runs([experiment_id], query):
            if run is None or old.info.run_id != run.info.run_id:
                connection.delete_run(old.info.run_id)
        if run is None:
            run, shown = connection.create_run(experiment_id, run_name=run_name, tags=tags), set()
            rows = _thinned(rows)
        else:
            shown = logged_steps(uri, run.info.run_id)
            connection.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        run_id = run.info.run_id
        dataset = Dataset(
            data["name"],
            str(data["fingerprint"])[:_LONGEST_DIGEST],
            "agit",
            json.dumps({"uri": redact(data["uri"])}),
        )
        training = [InputTag("mlflow.data.context", "training")]
        connection.log_inputs(run_id, datasets=[DatasetInput(dataset, training)])
        _log_parameters(connection, run, parameters)
        log_rows(uri, run_id, [row for row in rows if int(row["step"]) not in shown or "validation" in row])
        now, last = int(time.time() * 1000), int(rows[-1]["step"]) if rows else 0
        points = [Metric(name, value, now, last) for name, value in _numbers(metrics)]
        connection.log_batch(run_id, metrics=points)
        _store(connection, run, files)
        if LIVE in run.data.tags:
            connection.delete_tag(run_id, LIVE)
        connection.set_terminated(run_id)
        return str(run_id)


def begin_live(uri: str, config: Config, run_id: str, run_uri: str) -> Any:
    """The MLflow run in which a training is shown, new or there already; :func:`log_run` completes it later."""
    connection = client(uri)
    with explained(uri):
        experiment_id = _experiment(connection, config.name, artifact_location(config))
        run = _live_run(connection, experiment_id, run_id)
        if run is None:
            tags = {LIVE: run_id, "agit.run_id": run_id, "agit.run_uri": run_uri}
            tags |= {"mlflow.source.name": "agit", "mlflow.source.type": "JOB"}
            run = connection.create_run(
                experiment_id, run_name=run_id, tags={key: redact(value) for key, value in tags.items()}
            )
        else:
            connection.update_run(run.info.run_id, status="RUNNING")
        _log_parameters(connection, run, config.plain())
        return run


def end_live(uri: str, run_id: str, state: str) -> None:
    """Sets how the training ended; a run that has been completed meanwhile stays as it is."""
    with explained(uri):
        if LIVE in client(uri).get_run(run_id).data.tags:
            client(uri).set_terminated(run_id, state)


def logged_steps(uri: str, run_id: str) -> set[int]:
    """Steps of the rows that an MLflow run has."""
    with explained(uri):
        return {int(point.step) for point in client(uri).get_metric_history(run_id, "epoch")}


def log_rows(uri: str, run_id: str, rows: Sequence[dict[str, Any]]) -> None:
    """Rows of the metrics as points of the run's curves, ``epoch`` last, so that a row which has it is complete."""
    with explained(uri):
        from mlflow.entities import Metric

        now = time.time()
        points = [
            Metric(name, value, int(row.get("time", now) * 1000), int(row["step"]))
            for row in rows
            for name, value in _numbers({key: row[key] for key in sorted(row, key="epoch".__eq__)})
            if name not in {"step", "time"}
        ]
        for start in range(0, len(points), _METRICS_PER_CALL):
            client(uri).log_batch(run_id, metrics=points[start : start + _METRICS_PER_CALL])


def log_pictures(uri: str, run: Any, step: int, pictures: Mapping[str, Any]) -> None:
    """PIL images of a step, by the name of the series in which MLflow shows them.

    They may go into storage for which MLflow would need other clients than ours.
    """
    with explained(uri):
        from mlflow import MlflowClient

        class Stored(MlflowClient):
            def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
                path = Path(local_path)
                name = f"{artifact_path}/{path.name}" if artifact_path else path.name
                _store(client(uri), run, {name: path.read_bytes()})

        connection = Stored(tracking_uri=uri, registry_uri=uri)
        for key, picture in pictures.items():
            connection.log_image(run.info.run_id, picture, key=key, step=step)
        connection.set_tag(run.info.run_id, PICTURED, str(step))


def _experiment(connection: MlflowClient, name: str, artifacts: str) -> str:
    """The id of an experiment, new or there already."""
    found = connection.get_experiment_by_name(name)
    if found is None:
        return str(connection.create_experiment(name, artifact_location=artifacts))
    if found.lifecycle_stage == "deleted":  # by a person; the name stays taken until it is purged
        connection.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _live_run(connection: MlflowClient, experiment_id: str, run_id: str) -> Any:
    """The run that shows this training and is not completed yet, None where there is none."""
    found = connection.search_runs([experiment_id], f"tags.`{LIVE}` = '{run_id}'")
    return found[0] if found else None


def _log_parameters(connection: MlflowClient, run: Any, parameters: dict[str, Any]) -> None:
    """The settings that the run does not have yet: MLflow lets none change, as those may that only say how it runs."""
    from mlflow.entities import Param

    settings = flat(redact(parameters)).items()
    missing = [Param(key, value) for key, value in settings if key not in run.data.params]
    for start in range(0, len(missing), _PARAMETERS_PER_CALL):
        connection.log_batch(run.info.run_id, params=missing[start : start + _PARAMETERS_PER_CALL])


def _store(connection: MlflowClient, run: Any, files: dict[str, bytes]) -> None:
    """Write the run's artifacts: directly if their location is accessible, otherwise through the server."""
    root = str(run.info.artifact_uri)
    if "://" not in root or root.startswith(("file://", "s3://")):
        for path, content in files.items():
            storage.write_bytes(storage.join(root, path), content)
        return
    with tempfile.TemporaryDirectory(prefix="agit-artifacts-") as folder:
        for path, content in files.items():
            local = Path(folder) / path
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(content)
        connection.log_artifacts(run.info.run_id, folder)
