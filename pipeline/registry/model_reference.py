"""A model that a command was given: its folder, and what is known of where it comes from."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from agit_core import checkpoint, model_folder, pretrained
from agit_core.errors import BadInput, RunFailed
from pipeline import records, run_status, storage
from pipeline.config import Config
from pipeline.inference import model_card
from pipeline.registry import models


@dataclass(frozen=True)
class Chosen:
    """A model or checkpoint folder, and of a registered model its version as MLflow describes it."""

    uri: str
    """As it was given."""
    folder: str
    version: Any | None = None


def choose(uri: str, config: Config) -> Chosen:
    """The folder behind ``models:/NAME@ALIAS``, ``models:/NAME/3`` or ``pretrained:NAME``; of a finished run its
    last checkpoint.

    Raises:
        BadInput: there is no such version, or the run is not finished.
    """
    if uri.startswith("models:"):
        version = models.find(uri, config)
        return Chosen(uri, str(version.source), version)
    if uri.startswith(f"{pretrained.SCHEME}:"):
        return Chosen(uri, str(pretrained.folder(uri)))
    return Chosen(uri, run_status.model_checkpoint(uri) or uri)


def known(chosen: Chosen, config: Config) -> dict[str, Any]:
    """``run_id``, ``storage``, ``steps``, ``metrics``, ``model`` and ``report``, as every command names them.

    None for what is not known: a checkpoint has no version, and a folder that was carried here no report.
    """
    manifest = _json(chosen.folder, model_folder.MANIFEST) or _json(chosen.folder, checkpoint.MANIFEST)
    lineage = manifest.get("lineage") or {}
    run_uri = lineage.get("run_uri") or _run_of(chosen.folder)
    version = chosen.version
    scores = _scores(chosen.folder, run_uri)
    return {
        "run_id": lineage.get("run_id") or (storage.name(run_uri) if run_uri else None),
        "storage": config.storage,
        "steps": lineage.get("steps", manifest.get("step")),
        "metrics": scores.get("metrics"),
        "model": {
            "name": version.name if version is not None else manifest.get("name"),
            "version": int(version.version) if version is not None else None,
            "aliases": sorted(version.aliases) if version is not None else [],
            "uri": chosen.uri,
        },
        "report": _report(run_uri),
    }


def _run_of(folder: str) -> str | None:
    """The run whose checkpoint this is."""
    run_uri, found, _ = folder.rpartition("/checkpoints/")
    return run_uri if found and records.SPEC.peek(run_uri) else None


def _scores(folder: str, run_uri: str | None) -> dict[str, Any]:
    """What was measured of these very weights."""
    of_run = _json(run_uri, records.EVALUATION.name) if run_uri else {}
    if (of_run.get("model") or {}).get("uri") == folder:
        return of_run
    return _json(folder, model_card.SCORES)


def _report(run_uri: str | None) -> str | None:
    with contextlib.suppress(BadInput, RunFailed):  # the run's storage may be another's, or gone
        if run_uri and storage.exists(uri := storage.join(run_uri, records.REPORT)):
            return uri
    return None


def _json(folder: str, name: str) -> dict[str, Any]:
    """What a file says; nothing where it cannot be read: the command has done its work, and this only adds to it."""
    with contextlib.suppress(OSError, ValueError, TypeError, BadInput, RunFailed):
        return dict(storage.read_json(storage.join(folder, name)))
    return {}
