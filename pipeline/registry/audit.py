"""Audit trail of a model: every change of its champion with time, author and reason; one file per event."""

from __future__ import annotations

import getpass
import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from pipeline import storage

log = logging.getLogger(__name__)


def record(storage_uri: str, name: str, file: str, **event: Any) -> dict[str, Any]:
    """Write an event with its time and author and return it; an event already stored under ``file`` is kept."""
    entry = {
        "time": time.time(),
        "model": name,
        "by": _person(),
        "host": socket.gethostname(),
        **event,
    }
    uri = storage.join(storage_uri, "models", name, "audit", f"{file}.json")
    stored = _event(uri) if storage.exists(uri) else None
    if stored is not None:
        return stored
    storage.write_json(uri, entry)
    return entry


def events(storage_uri: str, name: str, runs: Mapping[int, str]) -> list[dict[str, Any]]:
    """The events of a model, oldest first, without damaged ones, which are logged.

    Several registries can share a storage, with the same version numbers: ``mlflow_run_id`` identifies the version
    that an event is about. Events of earlier releases lack it and are all included.

    Args:
        runs: MLflow run of each version in this registry.
    """
    folder = storage.join(storage_uri, "models", name, "audit")
    found = [_event(uri) for uri in storage.list_(folder) if uri.endswith(".json")]
    stored = [event for event in found if event is not None]
    ours = [event for event in stored if event.get("mlflow_run_id") in {None, runs.get(event["version"])}]
    return sorted(ours, key=lambda event: float(event["time"]))


def _event(uri: str) -> dict[str, Any] | None:
    """A stored event; None if it is damaged."""
    try:
        event = storage.read_json(uri)
        return event | {
            "time": float(event["time"]),
            "version": int(event["version"]),
            "action": str(event["action"]),
        }
    except (ValueError, KeyError, TypeError, IsADirectoryError):
        log.warning("the audit event %s is damaged and left out; restore it from a copy, or remove it", uri)
        return None


def champions(events: list[dict[str, Any]]) -> list[int]:
    """Stack of champions for rollbacks, the current one last; each rollback in ``events`` pops one."""
    stack: list[int] = []
    for event in events:
        if event["action"] == "rollback":
            while stack and stack[-1] != event["version"]:
                stack.pop()
        elif event.get("champion") == event["version"] and stack[-1:] != [event["version"]]:
            stack.append(int(event["version"]))
    return stack


def _person() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"
