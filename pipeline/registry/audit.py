"""The audit trail of a model: who or what changed its champion, when and why; one file per event."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from pipeline import storage


def record(storage_uri: str, name: str, file: str, **event: Any) -> dict[str, Any]:
    """Writes an event with its time and author; one that an interrupted call has written is kept."""
    told = {
        "time": time.time(),
        "model": name,
        "by": _person(),
        "host": socket.gethostname(),
        **event,
    }
    uri = storage.join(storage_uri, "models", name, "audit", f"{file}.json")
    if storage.exists(uri):
        return dict(storage.read_json(uri))
    storage.write_json(uri, told)
    return told


def events(storage_uri: str, name: str, runs: Mapping[int, str]) -> list[dict[str, Any]]:
    """The events of a model in the order of time.

    Registries that share a storage count their versions alike: an event with ``mlflow_run_id`` tells about the version
    of that run alone. Those of earlier releases have none.

    Args:
        runs: the registry's versions and their MLflow runs.
    """
    folder = storage.join(storage_uri, "models", name, "audit")
    found = [storage.read_json(uri) for uri in storage.list_(folder) if uri.endswith(".json")]
    own = [event for event in found if event.get("mlflow_run_id") in {None, runs.get(event["version"])}]
    return sorted(own, key=lambda event: float(event["time"]))


def champions(told: list[dict[str, Any]]) -> list[int]:
    """Champions that a rollback can return to, the present one last: each rollback takes one off."""
    stack: list[int] = []
    for event in told:
        if event["action"] == "rollback":
            while stack and stack[-1] != event["version"]:
                stack.pop()
        elif event.get("champion") == event["version"] and stack[-1:] != [event["version"]]:
            stack.append(int(event["version"]))
    return stack


def _person() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"
