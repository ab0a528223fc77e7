"""References to models on the command line: their folder, and a summary of their origin."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from agit_core import checkpoint, model_folder, pretrained
from agit_core.errors import BadInput, RunFailed
from pipeline import records, run_status, storage
from pipeline.config import Config
from pipeline.inference import hub
from pipeline.registry import models


@dataclass(frozen=True)
class ModelReference:
    """A model or checkpoint folder and, for a registered model, its MLflow version."""

    uri: str
    """As given by the user."""
    folder: str
    version: Any | None = None


def resolve(uri: str, config: Config) -> ModelReference:
    """Resolve ``models:/NAME@ALIAS``, ``models:/NAME/3``, ``hf://USER/REPO``, ``pretrained:NAME``, a run, or a folder.

    A finished run stands for its last checkpoint.

    Raises:
        BadInput: there is no such version, or the run is not finished.
    """
    if uri.startswith("models:"):
        version = models.find(uri, config)
        return ModelReference(uri, str(version.source), version)
    if uri.startswith(f"{pretrained.SCHEME}:"):
        return ModelReference(uri, str(pretrained.folder(uri)))
    if uri.startswith(f"{hub.SCHEME}:"):
        return ModelReference(uri, hub.resolve(uri))
    return ModelReference(uri, run_status.model_checkpoint(uri) or uri)


def describe(model: ModelReference, config: Config) -> dict[str, Any]:
    """``run_id``, ``storage``, ``steps``, ``metrics``, ``model`` and ``report``, under the names used by every command.

    Unknown values are None: a checkpoint has no version, and a copied folder no report.
    """
    manifest = _json(model.folder, model_folder.MANIFEST) or _json(model.folder, checkpoint.MANIFEST)
    lineage = manifest.get("lineage") or {}
    run_uri = lineage.get("run_uri") or _run_of(model.folder)
    version = model.version
    scores = _scores(model.folder, run_uri)
    return {
        "run_id": lineage.get("run_id") or (storage.name(run_uri) if run_uri else None),
        "storage": config.storage,
        "steps": lineage.get("steps", manifest.get("step")),
        "metrics": scores.get("metrics"),
        "model": {
            "name": version.name if version is not None else manifest.get("name"),
            "version": int(version.version) if version is not None else None,
            "aliases": sorted(version.aliases) if version is not None else [],
            "uri": model.uri,
        },
        "report": _report(run_uri),
    }


def _run_of(folder: str) -> str | None:
    """URI of the run that a checkpoint folder belongs to, or None."""
    run_uri, separator, _ = folder.rpartition("/checkpoints/")
    return run_uri if separator and records.SPEC.peek(run_uri) else None


def _scores(folder: str, run_uri: str | None) -> dict[str, Any]:
    """Evaluation of exactly these weights; empty if there is none."""
    of_run = _json(run_uri, records.EVALUATION.name) if run_uri else {}
    if (of_run.get("model") or {}).get("uri") == folder:
        return of_run
    return _json(folder, records.EVALUATION.name)


def _report(run_uri: str | None) -> str | None:
    with contextlib.suppress(BadInput, RunFailed):  # the run's storage may be inaccessible
        if run_uri and storage.exists(uri := storage.join(run_uri, records.REPORT)):
            return uri
    return None


def _json(folder: str, name: str) -> dict[str, Any]:
    """Contents of a JSON file; empty if it cannot be read, since this information is optional."""
    with contextlib.suppress(OSError, ValueError, TypeError, BadInput, RunFailed):
        return dict(storage.read_json(storage.join(folder, name)))
    return {}
