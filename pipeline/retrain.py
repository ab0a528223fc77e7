"""Scheduled retraining: decide whether to train, and from which weights to start.

Preparation reuses unchanged images, a finished training is found by its run id, and the gate promotes only better
models; this module decides whether to train at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from agit_core import model_folder
from agit_core.errors import BadInput
from pipeline import progress, storage
from pipeline.config import Config, parse_recorded
from pipeline.data.format import manifest
from pipeline.launch.specs import run_id
from pipeline.records import Data, Manifest
from pipeline.registry import models

Start = Literal["config", "scratch", "champion"]


@dataclass(frozen=True)
class Changes:
    """Differences between two prepared data sets, as image names ``split/name``."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Same name, different content (image or mask)."""
    moved: list[str] = field(default_factory=list)
    """Same content in another split or domain, as ``trainA/x.jpg -> trainB/x.jpg``."""

    def __str__(self) -> str:
        kinds = (
            ("added", self.added),
            ("removed", self.removed),
            ("changed", self.changed),
            ("moved", self.moved),
        )
        return ", ".join(f"{len(names)} {kind}" for kind, names in kinds if names) or "the same images"

    def plain(self, most: int = 20) -> dict[str, Any]:
        """Counts and the first names, JSON-ready."""
        return {kind: {"count": len(names), "names": names[:most]} for kind, names in vars(self).items()}


@dataclass(frozen=True)
class Decision:
    """Whether to train, the reason, and the configuration to train with."""

    train: bool
    reason: str
    config: Config
    changes: Changes | None = None
    version: int | None = None
    """The newest registered version, which data and settings were compared with."""

    def plain(self) -> dict[str, Any]:
        """JSON-ready form for the summary of a retraining."""
        return {
            "trained": self.train,
            "reason": self.reason,
            "compared_with_version": self.version,
            "changes": self.changes.plain() if self.changes else None,
            "start_from": self.config.train.start_from,
        }


def decide(config: Config, data: Data, start: Start = "config", only_when_changed: bool = True) -> Decision:
    """Decide whether to train, by comparing data and settings with those of the newest registered version.

    Args:
        start: initial weights: random (``scratch``), the champion's, or those of ``train.start_from`` (``config``).
        only_when_changed: False: train in any case.

    Raises:
        RunFailed: the registry does not respond.
    """
    if not only_when_changed:
        return Decision(True, "training was requested", _starting_from(config, start))
    with progress.stage("retrain") as stage:
        decision = _compare(config, data, start)
        stage.message = decision.reason
    return decision


def _compare(config: Config, data: Data, start: Start) -> Decision:
    versions = models.history(config)["versions"]
    to_train = _starting_from(config, start)
    if not versions:
        return Decision(True, "no version is registered yet: trains", to_train)
    newest = versions[0]
    number = int(newest["version"])
    origin = _lineage(newest["source"])
    if origin is None:
        reason = f"the lineage of version {number} cannot be read: trains"
        return Decision(True, reason, to_train, version=number)
    if origin["data_fingerprint"] != data.manifest.fingerprint:
        changed = changes(origin["data_uri"], data)
        what = (
            f"since version {number}: {changed}"
            if changed
            else f"the data of version {number} no longer exists"
        )
        return Decision(True, f"{what}: trains", to_train, changed, number)
    try:
        before = parse_recorded(origin["config"])
    except BadInput:  # a setting has been renamed or removed since
        reason = f"the settings of version {number} are from another release: trains"
        return Decision(True, reason, to_train, Changes(), number)
    if _identity(before, data.manifest) != _identity(config, data.manifest):
        reason = f"the settings differ from those of version {number}: trains"
        return Decision(True, reason, to_train, Changes(), number)
    reason = f"nothing changed since version {number}: no training"
    return Decision(False, reason, config, Changes(), number)


def changes(before_uri: str, data: Data) -> Changes | None:
    """Compare an earlier data set with this one; None if the earlier one no longer exists."""
    before = manifest.find(before_uri)
    if before is None:
        return None
    old, new = _contents(before_uri, before), _contents(data.uri, data.manifest)
    removed = {name: digest for name, digest in old.items() if name not in new}
    added = {name: digest for name, digest in new.items() if name not in old}
    by_digest: dict[str, list[str]] = {}
    for name in sorted(removed):
        by_digest.setdefault(removed[name], []).append(name)
    moved = []
    for name in sorted(added):
        if by_digest.get(added[name]):
            source = by_digest[added[name]].pop(0)
            moved.append(f"{source} -> {name}")
            del removed[source], added[name]
    return Changes(
        added=sorted(added),
        removed=sorted(removed),
        changed=sorted(name for name in old.keys() & new.keys() if old[name] != new[name]),
        moved=moved,
    )


def _contents(uri: str, tree: Manifest) -> dict[str, str]:
    """``{"trainA/x.jpg": digest of the source's contents}``."""
    contents = {}
    for split in tree.splits:
        index = manifest.read_index(uri, tree, split, ["name", "source_digest"])
        names, digests = index["name"].to_pylist(), index["source_digest"].to_pylist()
        contents.update({f"{split}/{name}": digest for name, digest in zip(names, digests, strict=True)})
    return contents


def _identity(config: Config, data_manifest: Manifest) -> str:
    """Run id without the initial weights, which change with every champion."""
    return run_id(_with_start(config, None), data_manifest)


def _starting_from(config: Config, start: Start) -> Config:
    if start == "config":
        return config
    if start == "scratch":
        return _with_start(config, None)
    champion = models.champion(config)
    return _with_start(config, champion["uri"] if champion else None)


def _with_start(config: Config, uri: str | None) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"start_from": uri})})


def _lineage(model_uri: str) -> dict[str, Any] | None:
    try:
        lineage = storage.read_json(storage.join(model_uri, model_folder.MANIFEST))["lineage"]
    except (FileNotFoundError, KeyError, TypeError, ValueError, BadInput):
        return None
    return lineage if {"config", "data_uri", "data_fingerprint"} <= lineage.keys() else None
