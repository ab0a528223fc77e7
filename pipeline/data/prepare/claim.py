"""One process at most prepares a data set, and a finished set is never written again.

The owner stands in ``.parts/owner.json`` and renews ``.parts/alive-TOKEN.json`` while it works. A second process waits
for it, and takes the set over when the owner has ended or has been silent. The first may only have been suspended:
before each file that it puts into place a process asks whether it is still the owner and the set unfinished.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from filelock import FileLock

from agit_core.errors import BadInput, RunFailed
from pipeline import storage
from pipeline.data.format import manifest
from pipeline.data.prepare.plan import PARTS
from pipeline.data.sources.source import Progress
from pipeline.process_identity import is_here, process_started, this_process

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
        """Wait until nobody else prepares the set, then own it; False: it is finished by now."""
        while (owner := self._other()) is not None:
            if self._finished():
                break
            report({"message": f"waiting for {owner}, which prepares the same data"})
            time.sleep(_LOOK_SECONDS)
        if self._finished():
            yield False
            return
        storage.write_json(storage.join(self._uri, PARTS, "owner.json"), self._owner)
        ended = threading.Event()
        thread = threading.Thread(target=self._beat, args=(ended,), name="prepare-alive", daemon=True)
        thread.start()
        try:
            yield True
        finally:
            ended.set()
            thread.join(timeout=2)

    @contextlib.contextmanager
    def putting(self) -> Iterator[None]:
        """Surrounds whatever puts a file of the set into place or removes one.

        Raises:
            Superseded: another process owns the set or has finished it. Locally nobody can come in between; on object
                storage one who takes over must have found this process silent for as long as the one request takes.
        """
        if self._lock is None:
            self._check()
            yield
            return
        self._check()  # creates no folder in a finished set
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
        """Who else prepares the set, in words."""
        try:
            owner: dict[str, Any] = storage.read_json(storage.join(self._uri, PARTS, "owner.json"))
            where = f"process {owner['pid']} on {owner['host']}"
            if is_here(owner) and process_started(owner["pid"]) != owner["started"]:
                return None
            beat = storage.read_json(storage.join(self._uri, PARTS, f"alive-{owner['token']}.json"))
            silent = time.time() - float(beat["time"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        # a clock may be wrong in either direction
        return where if abs(silent) < SILENT_SECONDS else None

    def _beat(self, ended: threading.Event) -> None:
        where = storage.join(self._uri, PARTS, f"alive-{self._owner['token']}.json")
        while True:
            with contextlib.suppress(BadInput, RunFailed, OSError):  # the storage is away; the next one tells
                self._check()
                storage.write_json(where, {"time": time.time()})
            if ended.wait(_BEAT_SECONDS):
                return
