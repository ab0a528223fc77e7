"""Scheduled retraining: is there anything new to learn from, and from which weights to start.

Preparation takes over what it knows already, training is found again by its run's identity, and the gate
promotes only a better model; what is left to decide here is whether to train at all.
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
from pipeline.records import Data
from pipeline.registry import models

Start = Literal["config", "scratch", "champion"]


@dataclass(frozen=True)
class Changes:
    """Images by ``split/name`` that differ between two prepared data sets."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """The same name, another content (image or mask)."""
    moved: list[str] = field(default_factory=list)
    """The same content in another split or domain, as ``trainA/x.jpg -> trainB/x.jpg``."""

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
    """Whether to train, why, and with which configuration."""

    train: bool
    reason: str
    config: Config
    changes: Changes | None = None
    version: int | None = None
    """The newest version of the model, which the data was compared with."""

    def plain(self) -> dict[str, Any]:
        """For the summary of a retraining."""
        return {
            "trained": self.train,
            "reason": self.reason,
            "compared_with_version": self.version,
            "changes": self.changes.plain() if self.changes else None,
            "start_from": self.config.train.start_from,
        }


def decide(config: Config, data: Data, start: Start = "config", only_when_changed: bool = True) -> Decision:
    """Whether to train: compares data and settings with what the newest version was trained on.

    Args:
        start: whose weights a training starts from; ``config`` leaves ``train.start_from`` as it is.
        only_when_changed: False trains in any case.

    Raises:
        RunFailed: the registry does not answer.
    """
    if not only_when_changed:
        return Decision(True, "training was asked for", _starting_from(config, start))
    with progress.stage("retrain") as stage:
        decision = _compare(config, data, start)
        stage.message = decision.reason
    return decision


def _compare(config: Config, data: Data, start: Start) -> Decision:
    versions = models.history(config)["versions"]
    chosen = _starting_from(config, start)
    if not versions:
        return Decision(True, "no version is registered yet: trains", chosen)
    newest = versions[0]
    number = int(newest["version"])
    origin = _lineage(newest["source"])
    if origin is None:
        reason = f"the lineage of version {number} cannot be read: trains"
        return Decision(True, reason, chosen, version=number)
    if origin["data_fingerprint"] != data.manifest["fingerprint"]:
        found = changes(origin["data_uri"], data)
        what = f"since version {number}: {found}" if found else f"the images of version {number} are gone"
        return Decision(True, f"{what}: trains", chosen, found, number)
    try:
        before = parse_recorded(origin["config"])
    except BadInput:  # a setting has been renamed or removed since
        reason = f"the settings of version {number} are of another release: trains"
        return Decision(True, reason, chosen, Changes(), number)
    if _identity(before, data.manifest) != _identity(config, data.manifest):
        reason = f"the settings differ from those of version {number}: trains"
        return Decision(True, reason, chosen, Changes(), number)
    reason = f"nothing changed since version {number}: no training"
    return Decision(False, reason, config, Changes(), number)


def changes(before_uri: str, data: Data) -> Changes | None:
    """What differs between an earlier data set and this one; None when the earlier one is gone."""
    before = manifest.find(before_uri)
    if before is None:
        return None
    old, new = _contents(before_uri, before), _contents(data.uri, data.manifest)
    gone = {name: digest for name, digest in old.items() if name not in new}
    fresh = {name: digest for name, digest in new.items() if name not in old}
    by_digest: dict[str, list[str]] = {}
    for name in sorted(gone):
        by_digest.setdefault(gone[name], []).append(name)
    moved = []
    for name in sorted(fresh):
        if by_digest.get(fresh[name]):
            source = by_digest[fresh[name]].pop(0)
            moved.append(f"{source} -> {name}")
            del gone[source], fresh[name]
    return Changes(
        added=sorted(fresh),
        removed=sorted(gone),
        changed=sorted(name for name in old.keys() & new.keys() if old[name] != new[name]),
        moved=moved,
    )


def _contents(uri: str, tree: dict[str, Any]) -> dict[str, str]:
    """``{"trainA/x.jpg": digest of what the source held}``."""
    found = {}
    for split in tree["splits"]:
        index = manifest.read_index(uri, tree, split, ["name", "source_digest"])
        names, digests = index["name"].to_pylist(), index["source_digest"].to_pylist()
        found.update({f"{split}/{name}": digest for name, digest in zip(names, digests, strict=True)})
    return found


def _identity(config: Config, data_manifest: dict[str, Any]) -> str:
    """The run's identity without the weights it starts from: those change with every champion."""
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
    except (FileNotFoundError, KeyError, ValueError, BadInput):
        return None
    return lineage if {"config", "data_uri", "data_fingerprint"} <= lineage.keys() else None
