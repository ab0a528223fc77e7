"""Claim on a data set: at most one process prepares it at a time, and a finished one is never written again.

``.parts/owner.json`` names the owner, which sends heartbeats to ``.parts/alive-TOKEN.json`` while it works. A second
process waits for it, and takes over when the owner has ended or its heartbeat has timed out. Since the first may merely
have been suspended, each process checks before publishing a file that it is still the owner and the set unfinished.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from filelock import FileLock

from agit_core.errors import RunFailed
from pipeline import storage
from pipeline.data.format import manifest
from pipeline.data.prepare.plan import PARTS
from pipeline.data.sources.source import Progress
from pipeline.process_identity import heartbeat, is_here, process_started, this_process

SILENT_SECONDS = 30.0
"""Heartbeat timeout of an owner."""
_BEAT_SECONDS = 5.0
_LOOK_SECONDS = 1.0


class Superseded(RunFailed):
    """Another process prepares this set now, or has finished it."""


class Claim:
    """This process's right to write a data set."""

    def __init__(self, uri: str, owner: dict[str, Any] | None = None) -> None:
        """``owner``: of the claim in whose name this process puts files into place; default: this process."""
        self._uri = uri
        self._owner = owner or this_process()
        self._lock = None if storage.is_remote(uri) else FileLock(self._lock_path)

    def __reduce__(self) -> tuple[type[Claim], tuple[str, dict[str, Any]]]:
        """On its way to a task that works for the owner."""
        return Claim, (self._uri, self._owner)

    @property
    def _lock_path(self) -> str:
        return str(storage.local_path(storage.join(self._uri, PARTS, "lock")))

    @contextlib.contextmanager
    def held(self, report: Progress) -> Iterator[bool]:
        """Wait until no other process prepares the data set, then own it; yields False if it is finished by then."""
        while (owner := self._other()) is not None:
            if self._finished():
                break
            report({"message": f"waiting for {owner}, which prepares the same data"})
            time.sleep(_LOOK_SECONDS)
        if self._finished():
            yield False
            return
        self._tell()  # before anybody sees the owner: one without a sign of life is taken over
        storage.write_json(storage.join(self._uri, PARTS, "owner.json"), self._owner)
        with heartbeat(self._beat, _BEAT_SECONDS, "prepare-alive"):
            yield True

    @contextlib.contextmanager
    def putting(self) -> Iterator[None]:
        """Guard the publication or removal of a file of the data set.

        On a local disk, a lock excludes a take-over within the block. On object storage, a take-over during the block's
        request would require that it lasts longer than the heartbeat timeout.

        Raises:
            Superseded: another process owns the data set or has finished it.
        """
        if self._lock is None:
            self._check()
            yield
            return
        self._check()  # first, because taking the lock would create a folder in a finished set
        with self._lock:
            self._check()
            yield

    def _check(self) -> None:
        try:
            token = storage.read_json(storage.join(self._uri, PARTS, "owner.json"))["token"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            token = None
        if token != self._owner["token"] or self._finished():
            raise Superseded(f"another process prepares {self._uri} meanwhile; this one leaves it to that")

    def _finished(self) -> bool:
        return storage.exists(storage.join(self._uri, manifest.NAME))

    def _other(self) -> str | None:
        """Description of another process that prepares the data set, or None."""
        try:
            owner: dict[str, Any] = storage.read_json(storage.join(self._uri, PARTS, "owner.json"))
            where = f"process {owner['pid']} on {owner['host']}"
            if is_here(owner) and process_started(owner["pid"]) != owner["started"]:
                return None
            beat = storage.read_json(storage.join(self._uri, PARTS, f"alive-{owner['token']}.json"))
            silent = time.time() - float(beat["time"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        # absolute value: clocks may differ in either direction
        return where if abs(silent) < SILENT_SECONDS else None

    def _tell(self) -> None:
        where = storage.join(self._uri, PARTS, f"alive-{self._owner['token']}.json")
        storage.write_json(where, {"time": time.time()})

    def _beat(self) -> None:
        self._check()
        self._tell()
