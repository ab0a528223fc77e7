"""What happened to a run: one small JSON file per event, so that any process can add one, on any storage.

How far it has come stands, besides in the storage, where the death of the training process does not take it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import time
import uuid
from typing import Any

from agit_core.errors import RunFailed
from pipeline import storage
from pipeline.config import fingerprint
from pipeline.records import EVENTS

FAILURES = (
    "worker_failed",
    "controller_lost",
    "job_lost",
    "interrupted",
    "preempted",
    "checkpoint_damaged",
    "failed",
)
"""Kinds that tell of something that went wrong; ``resumed`` tells that the run went on after it."""


def as_file(run_uri: str, kind: str, message: str = "", **details: Any) -> dict[str, bytes]:
    """An event that happens now, as the file to be written: URI -> content."""
    now = time.time()
    event = {
        "time": now,
        "kind": kind,
        "message": message,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        **details,
    }
    name = f"{int(now * 1000):013d}-{kind}-{uuid.uuid4().hex[:6]}.json"
    return {storage.join(run_uri, EVENTS, name): storage.json_bytes(event)}


def record(run_uri: str, kind: str, message: str = "", **details: Any) -> None:
    """Adds an event. A storage that does not answer loses it: events inform, nothing depends on them."""
    with contextlib.suppress(RunFailed, OSError):
        for uri, content in as_file(run_uri, kind, message, **details).items():
            storage.write_bytes(uri, content)


def read(run_uri: str) -> list[dict[str, Any]]:
    """All events of a run in the order of time; what is damaged is left out."""
    events = []
    for uri in storage.list_(storage.join(run_uri, EVENTS)):
        with contextlib.suppress(
            FileNotFoundError, IsADirectoryError, ValueError, KeyError, TypeError, RecursionError
        ):
            event = storage.read_json(uri)
            whole = {
                "time": float(event["time"]),
                "kind": str(event["kind"]),
                "message": str(event.get("message", "")),
            }
            events.append(event | whole)
    return sorted(events, key=lambda event: float(event["time"]))


def record_interruption(run_uri: str) -> None:
    """For who starts a run again: tells that it was cut off, where the one before could not say so itself."""
    with contextlib.suppress(RunFailed, OSError):
        kinds = [event["kind"] for event in read(run_uri)]
        if kinds and kinds[-1] not in {"job_lost", "failed", "finished", "interrupted"}:
            record(
                run_uri, "interrupted", "the process that trained it or had started it was killed or stopped"
            )


class Furthest:
    """The step that was reached, kept where the death of this process does not take it: in a mapped file.

    It costs nothing in the loop and tells, after a restart on the same node, how many steps are done again.
    """

    def __init__(self, run_uri: str) -> None:
        self._path = (
            storage.private_folder("agit-furthest") / f"{storage.name(run_uri)}-{fingerprint(run_uri)}"
        )
        self._path.touch()
        os.truncate(self._path, 8)
        with self._path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8)

    @property
    def step(self) -> int:
        return int.from_bytes(self._map[:], "little")

    @step.setter
    def step(self, value: int) -> None:
        self._map[:] = value.to_bytes(8, "little")

    def remove(self) -> None:
        """The run is finished."""
        self._path.unlink(missing_ok=True)
