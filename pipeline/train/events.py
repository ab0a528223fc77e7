"""Event log of a run: one small JSON file per event, so that any process can append on any storage.

:class:`Furthest` additionally keeps the reached step where it survives the death of the training process.
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
from pipeline.records import EVENTS, Event

FAILURES = (
    "worker_failed",
    "controller_lost",
    "job_lost",
    "interrupted",
    "preempted",
    "checkpoint_damaged",
    "failed",
)
"""Kinds of events that report a failure; ``resumed`` reports the recovery."""


def as_file(run_uri: str, kind: str, message: str = "", **details: Any) -> dict[str, bytes]:
    """An event with the current time as a file to write: URI -> content."""
    now = time.time()
    event = Event(time=now, kind=kind, message=message, host=socket.gethostname(), pid=os.getpid(), **details)
    name = f"{int(now * 1000):013d}-{kind}-{uuid.uuid4().hex[:6]}.json"
    return {storage.join(run_uri, EVENTS, name): storage.json_bytes(event.plain())}


def record(run_uri: str, kind: str, message: str = "", **details: Any) -> None:
    """Append an event; it is dropped if the storage does not respond, since events are only informative."""
    with contextlib.suppress(RunFailed, OSError):
        for uri, content in as_file(run_uri, kind, message, **details).items():
            storage.write_bytes(uri, content)


def read(run_uri: str) -> list[Event]:
    """All readable events of a run, oldest first."""
    events = []
    for uri in storage.list_(storage.join(run_uri, EVENTS)):
        # a ValidationError is a ValueError
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
            events.append(Event.model_validate(storage.read_json(uri)))
    return sorted(events, key=lambda event: event.time)


def record_interruption(run_uri: str) -> None:
    """Before restarting a run: record its interruption if the previous process could not do so."""
    with contextlib.suppress(RunFailed, OSError):
        kinds = [event.kind for event in read(run_uri)]
        if kinds and kinds[-1] not in {"job_lost", "failed", "finished", "interrupted"}:
            record(
                run_uri, "interrupted", "the process that trained it or had started it was killed or stopped"
            )


class Furthest:
    """The furthest step reached, kept in a memory-mapped file, which survives the death of this process.

    Updating it costs nothing in the loop. After a restart on the same node it gives the number of repeated steps.
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
        """Delete the file of a finished run."""
        self._path.unlink(missing_ok=True)
