"""MLflow, kept quiet: one client per server or SQLite file, errors in one sentence, a run with its curves."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agit_core.errors import BadInput, RunFailed
from pipeline import records, storage
from pipeline.config import Config
from pipeline.redact import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

# before the first import of MLflow, which asks for them and else makes an installation id in the home directory
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
# the defaults (7 retries, 120 s each) would keep a person waiting for minutes before an error
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

LOCAL_DATABASE = "mlflow.db"
CURVE_POINTS = 500
"""At most this many rows of the training's metrics are logged, evenly spread: the rest stays in storage."""
_ABSENT = "RESOURCE_DOES_NOT_EXIST"
_PARAMETERS_PER_CALL, _METRICS_PER_CALL = 100, 1000
_LONGEST_PARAMETER = 6000
_LONGEST_DIGEST = 36


def tracking_uri(config: Config | None = None) -> str:
    """``register.tracking_uri``, else ``MLFLOW_TRACKING_URI``, else a SQLite file beside the local storage.

    A file in object storage cannot be a database: with ``s3://`` storage it stands in ``./.agit``.
    """
    chosen = (config.register_.tracking_uri if config else None) or os.environ.get("MLFLOW_TRACKING_URI")
    if chosen:
        return chosen
    root = "./.agit" if config is None or storage.is_remote(config.storage) else config.storage
    return f"sqlite:///{storage.local_path(root) / LOCAL_DATABASE}"


def check_storage(config: Config) -> None:
    """Whether the registry takes models from the configuration's storage.

    Raises:
        BadInput: an MLflow server, which takes none from a local folder, its own machine's included.
    """
    uri = tracking_uri(config)
    if uri.startswith(("http://", "https://")) and not storage.is_remote(config.storage):
        raise _takes_no_folder(redact(uri))


def _takes_no_folder(shown: str) -> BadInput:
    return BadInput(
        f"the tracking server {shown} takes no models from a local folder; use storage=s3://... with a server, or "
        "set neither register.tracking_uri nor MLFLOW_TRACKING_URI"
    )


def database(uri: str) -> Path | None:
    """The file of a SQLite tracking URI, None for a server."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@lru_cache(maxsize=8)
def client(uri: str) -> MlflowClient:
    """The client of a tracking URI; the SQLite file is created where there is none."""
    file = database(uri)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    with explained(uri):
        from mlflow import MlflowClient

        # MLflow tells about every table that it creates
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """MLflow's errors as ours: :class:`BadInput` for a refused request, :class:`RunFailed` for no answer.

    ``LookupError`` stands for something that is not there.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    shown = redact(uri)
    try:
        yield
    except MlflowException as error:
        text = redact(" ".join(str(error).split()))[:300]
        # an unknown alias is an invalid parameter to MLflow
        if error.error_code == _ABSENT or ("alias" in text and "not found" in text):
            raise LookupError(text) from None
        if "model version source" in text:
            raise _takes_no_folder(shown) from None
        if error.error_code in {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "PERMISSION_DENIED"}:
            raise BadInput(f"MLflow at {shown} refuses: {text}") from error
        raise RunFailed(f"MLflow at {shown} failed: {text}; check that it runs and try again") from error
    except (SQLAlchemyError, OSError) as error:
        text = redact(" ".join(str(error).split()))[:300]
        raise RunFailed(f"MLflow at {shown} cannot be used: {text}") from error


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as ``a.b.c`` to text."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            found[f"{prefix}{key}"] = text[:_LONGEST_PARAMETER]
    return found


def curves(run_uri: str) -> list[dict[str, Any]]:
    """Rows of ``metrics/*.jsonl`` by step, thinned to :data:`CURVE_POINTS`; nested figures as ``losses.x``.

    Rows with scores of a checkpoint (``validation.x``) all stay.
    """
    rows, _ = records.metric_rows(run_uri)
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
    """A finished MLflow run with settings, curves, scores, data set and files, and its id.

    Runs that an interrupted call left behind under the same name and key are removed.

    Args:
        artifacts: where a new experiment's files go; the pipeline's own stay where they are, named by tags.
        tags: ``agit.key`` tells which of several attempts of one run this is.
        data: ``name``, ``fingerprint`` and ``uri`` of what it was trained on.
        files: path to content.
    """
    connection = client(uri)
    with explained(uri):
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

        found = connection.get_experiment_by_name(experiment)
        if found is None:
            experiment_id = connection.create_experiment(experiment, artifact_location=artifacts)
        else:
            experiment_id = found.experiment_id
            if found.lifecycle_stage == "deleted":  # by a person; the name stays taken until it is purged
                connection.restore_experiment(experiment_id)
        query = f"tags.`agit.key` = '{tags['agit.key']}'"
        for old in connection.search_runs([experiment_id], query):
            connection.delete_run(old.info.run_id)
        run = connection.create_run(experiment_id, run_name=run_name, tags=tags)
        run_id = run.info.run_id
        dataset = Dataset(
            data["name"],
            str(data["fingerprint"])[:_LONGEST_DIGEST],
            "agit",
            json.dumps({"uri": redact(data["uri"])}),
        )
        training = [InputTag("mlflow.data.context", "training")]
        connection.log_inputs(run_id, datasets=[DatasetInput(dataset, training)])
        settings = [Param(key, value) for key, value in flat(redact(parameters)).items()]
        for start in range(0, len(settings), _PARAMETERS_PER_CALL):
            connection.log_batch(run_id, params=settings[start : start + _PARAMETERS_PER_CALL])
        now = int(time.time() * 1000)
        last = int(rows[-1]["step"]) if rows else 0
        points = [
            Metric(name, value, int(row.get("time", now / 1000) * 1000), int(row["step"]))
            for row in rows
            for name, value in _numbers({k: v for k, v in row.items() if k not in {"step", "time"}})
        ]
        points += [Metric(name, value, now, last) for name, value in _numbers(metrics)]
        for start in range(0, len(points), _METRICS_PER_CALL):
            connection.log_batch(run_id, metrics=points[start : start + _METRICS_PER_CALL])
        _store(connection, run, files)
        connection.set_terminated(run_id)
        return str(run_id)


def _store(connection: MlflowClient, run: Any, files: dict[str, bytes]) -> None:
    """Puts files where the run's artifacts are: by ourselves where we can reach it, else through the server."""
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
