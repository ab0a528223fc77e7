"""Unused items: old runs without a registered model, here and in MLflow, data sets that no run refers to, caches.

Everything that a registered model needs is kept: its folder, its run, that run's data, and the model or run of its
initial weights. So is everything that changed within the last hour, since it may be in use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pipeline import records, run_status, storage
from pipeline.config import Config
from pipeline.launch.specs import absolute
from pipeline.redact import redact
from pipeline.registry import tracking, unused_runs, versions
from pipeline.train import lease

_LEAST_SECONDS = 3600.0
_DEPTH = {"runs": 1, "data": 1, "models": 2, "evaluations": 1, "features": 1, "downloads": 1}
"""Folders of a storage, and the depth below each at which items are kept or removed as a whole."""
_MLFLOW = "mlflow"
# removed first: without these files, an interrupted removal leaves no valid run, data set or model
_FIRST = {
    "runs": (records.DONE.name, records.RESULT.name),
    "data": (records.MANIFEST.name,),
    "models": ("model.json",),  # agit_core.model_folder.MANIFEST, which would take seconds to import
}


@dataclass(frozen=True)
class Unused:
    """An item that can be removed, and the reason."""

    kind: str
    uri: str
    """A file or folder; of a run in MLflow ``runs:/ID``."""
    bytes: int
    updated: float
    """Unix time of its newest file, or of its end."""
    reason: str


def find(config: Config, older_than_days: float, now: float | None = None) -> list[Unused]:
    """List unused items that have not changed for ``older_than_days``, largest first; removes nothing.

    Raises:
        BadInput, RunFailed: the storage or the registry does not respond.
    """
    now = time.time() if now is None else now
    root = absolute(config.storage)
    limit = now - max(older_than_days * 86400, _LEAST_SECONDS)
    stored = {kind: _things(storage.join(root, kind), depth) for kind, depth in _DEPTH.items()}
    if storage.is_remote(root):
        stored["downloads"] = _things(str(storage.downloads(root).absolute()), 1)
    registered = _registered(config)
    kept = _kept_runs(config, stored["runs"], limit, registered)
    needed = registered | _references(kept)
    unsure = any(not _data_of(run) for run in kept)
    reasons: dict[str, tuple[str, Callable[[str], bool]]] = {
        "runs": ("no registered model", lambda uri: uri not in kept),
        "data": ("no run refers to it", lambda uri: not unsure and uri not in needed),
        "models": ("no registered version", lambda uri: uri not in needed),
        "evaluations": ("scores of a model that can be scored again", lambda uri: uri not in needed),
        "features": ("a cache, computed again when it is needed", lambda uri: True),
        "downloads": ("a cache, fetched again when it is needed", lambda uri: True),
    }
    found = [
        Unused(kind, uri, size, updated, reasons[kind][0])
        for kind, things in stored.items()
        for uri, (size, updated) in things.items()
        if updated < limit and reasons[kind][1](uri)
    ]
    found += _in_mlflow(config, root, limit, registered, kept)
    return sorted(found, key=lambda thing: -thing.bytes)


def remove(config: Config, things: Iterable[Unused]) -> None:
    """Remove items; an interruption leaves no item that looks valid."""
    things = list(things)
    in_mlflow = [storage.name(thing.uri) for thing in things if thing.kind == _MLFLOW]
    if in_mlflow:
        unused_runs.remove(tracking.tracking_uri(config), in_mlflow)
    for thing in things:
        if thing.kind == _MLFLOW:
            continue
        for name in _FIRST.get(thing.kind, ()):
            storage.remove(storage.join(thing.uri, name))
        storage.remove(thing.uri)


def _things(folder: str, depth: int) -> dict[str, tuple[int, float]]:
    """URI -> bytes and time of the newest file, of everything at a depth of a folder."""
    found: dict[str, tuple[int, float]] = {}
    for file in storage.details(folder):
        parts = file.uri[len(folder.rstrip("/")) + 1 :].split("/")
        if depth > 1 and (len(parts) <= depth or parts[depth - 1] == "audit"):
            continue  # the audit trail of a model belongs to no version
        uri = storage.join(folder, *parts[:depth])
        size, updated = found.get(uri, (0, 0.0))
        found[uri] = (size + file.bytes, max(updated, file.modified))
    return found


def _in_mlflow(
    config: Config, root: str, limit: float, registered: set[str], kept: set[str]
) -> Iterator[Unused]:
    """Old runs of a local MLflow database, of trainings in this storage that are not kept or that are gone."""
    uri = tracking.tracking_uri(config)
    here = f"{records.run_uri(root, '')}/"
    for run, reason in unused_runs.find(
        uri, registered, lambda training: training.startswith(here) and training.rstrip("/") not in kept
    ):
        updated = max(run.info.start_time or 0, run.info.end_time or 0) / 1000
        if updated < limit:
            files = storage.details(unused_runs.artifacts(run))
            size = sum(file.bytes for file in files)
            yield Unused(_MLFLOW, f"runs:/{run.info.run_id}", size, updated, reason)


def _registered(config: Config) -> set[str]:
    """Folders, runs and data of all versions of the registry; a run also by its ids, here and in MLflow."""
    tags = ("agit.run_uri", "agit.data_uri", "agit.run_id", "agit.model_uri")
    found = set()
    for version in versions.all_versions(tracking.tracking_uri(config)):
        found |= {
            str(version.source).rstrip("/"),
            str(version.run_id),
            *(version.tags[tag] for tag in tags if tag in version.tags),
        }
    return found


def _kept_runs(
    config: Config, runs: dict[str, tuple[int, float]], limit: float, registered: set[str]
) -> set[str]:
    states = {run.run_uri: run.state for run in run_status.list_runs(absolute(config.storage))}
    kept = {
        uri
        for uri, (_, updated) in runs.items()
        if updated >= limit
        or states.get(uri) in lease.UNDER_WAY
        or {uri, storage.name(uri)} & registered
        or _registered_elsewhere(config, uri)
    }
    # a model that another run started from can be asked for when that one is reproduced
    while True:
        starts = [start.uri for uri in kept if (start := records.START.peek(uri)) is not None]
        more = {
            uri for uri in runs.keys() - kept if any(f"{start}/".startswith(f"{uri}/") for start in starts)
        }
        if not more:
            return kept
        kept |= more


def _registered_elsewhere(config: Config, run: str) -> bool:
    """Whether a run's model stands in another registry than this one, or it is unknown which."""
    if not records.REGISTRATION.exists(run):
        return False
    registration = records.REGISTRATION.peek(run)
    known = registration.mlflow.tracking_uri if registration else None
    return known != redact(tracking.tracking_uri(config))


def _data_of(run: str) -> str | None:
    spec = records.SPEC.peek(run)
    return spec.data_uri.rstrip("/") if spec and spec.data_uri else None


def _references(runs: set[str]) -> set[str]:
    """What these runs refer to: their data, their registered model, what they started from."""
    found = {data for run in runs if (data := _data_of(run))}
    for run in runs:
        if (registration := records.REGISTRATION.peek(run)) is not None:
            found.add(registration.source.rstrip("/"))
        if (start := records.START.peek(run)) is not None:
            found.add(start.uri.rstrip("/"))
    return found
