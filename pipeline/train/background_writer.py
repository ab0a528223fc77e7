"""Background writing on rank 0, so that training does not wait for the storage."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from agit_core.checkpoint import Snapshot
from agit_core.errors import RunFailed
from pipeline import records, storage
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.lease import TakenOver

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 2.0
_RATE_SECONDS = 20.0
_RETRY_SECONDS = 2.0


class Saver:
    """Stores snapshots and small files in the order given, in a background thread.

    At most one snapshot is queued while another is being stored; a newer one replaces it. If the storage does not
    respond (or a disk is full), storing is retried while training continues; after ``patience_s`` seconds it gives up,
    and the next call of any method raises RunFailed.
    """

    def __init__(
        self, store: CheckpointStore, patience_s: float, check: Callable[[], None] = lambda: None
    ) -> None:
        """``check`` raises TakenOver if this process may no longer write to the run."""
        self.last_stored = 0
        """Step of the newest stored snapshot."""
        self.last_stored_at: float | None = None
        """Unix time of ``last_stored``; None before the first snapshot."""
        self._handed = 0
        self._store = store
        self._patience_s = patience_s
        self._check = check
        self._files: dict[str, bytes] = {}
        self._snapshot: Snapshot | None = None
        self._busy = False
        self._closed = False
        self._failure: RunFailed | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="saver", daemon=True)
        self._thread.start()

    def put(self, files: dict[str, bytes], snapshot: Snapshot | None = None) -> None:
        """Queue files (URI -> content) and optionally a snapshot, which is stored after them. Does not block."""
        with self._changed:
            self._raise_failure()
            self._files |= files
            if snapshot is not None:
                self._snapshot, self._handed = snapshot, int(snapshot.info["step"])
            self._changed.notify_all()

    def catch_up(self) -> None:
        """Wait until the newest queued snapshot is stored."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or self._closed or self.last_stored >= self._handed)
            self._raise_failure()

    def check(self) -> None:
        """Raise the background thread's failure, if any."""
        with self._changed:
            self._raise_failure()

    def drain(self) -> None:
        """Wait until everything queued is stored."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or not (self._files or self._snapshot or self._busy))
            self._raise_failure()

    def close(self) -> None:
        """End the thread; discard everything still queued."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=5)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or self._files or self._snapshot)
                if self._closed:
                    return
                self._busy = True
            try:
                self._store_with_patience()
            except BaseException as error:
                with self._changed:
                    self._failure = error if isinstance(error, RunFailed) else _as_failure(error)
                    self._changed.notify_all()
                return

    def _store_with_patience(self) -> None:
        files: dict[str, bytes] = {}
        snapshot: Snapshot | None = None
        failing_since: float | None = None
        while True:
            with self._changed:
                files, self._files = files | self._files, {}
                snapshot, self._snapshot = self._snapshot or snapshot, None
                if self._closed:
                    return
            began = time.monotonic()
            try:
                if snapshot is not None:
                    self._check()
                for uri in list(files):
                    storage.write_bytes(uri, files[uri])
                    del files[uri]
                if snapshot is not None:
                    self._store.write(snapshot, self._check)
                    with self._changed:
                        self.last_stored, self.last_stored_at = int(snapshot.info["step"]), time.time()
                        self._changed.notify_all()
                return
            except TakenOver:
                raise
            except (RunFailed, OSError) as error:
                now = time.monotonic()
                failing_since = failing_since or began  # the failed attempt itself may have taken long
                if now - failing_since >= self._patience_s:
                    raise
                log.warning("cannot store yet, trying again: %s", error)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, timeout=_RETRY_SECONDS)


def _as_failure(error: BaseException) -> RunFailed:
    failure = RunFailed(f"a checkpoint could not be stored: {' '.join(str(error).split())}")
    failure.__cause__ = error
    return failure


class Progress:
    """Writes ``progress.json`` about every two seconds, independently of the training step."""

    def __init__(self, run_uri: str, saver: Saver, batch_size: int, **state: Any) -> None:
        self._run_uri = run_uri
        self._saver = saver
        self._batch_size = batch_size
        self._state: dict[str, Any] = {"images_per_s": None, "eta_s": None, "losses": {}, **state}
        self._marks: list[tuple[float, int]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="progress", daemon=True)
        self._thread.start()

    def update(self, **state: Any) -> None:
        """Set some of the keys; does no I/O."""
        with self._lock:
            self._state |= state

    def close(self, **state: Any) -> None:
        """Write the final state and end the thread."""
        self.update(**state)
        self._stop.set()
        self._thread.join(timeout=30)

    def _work(self) -> None:
        while True:
            last = self._stop.wait(_PROGRESS_SECONDS if self._marks else 0.2)
            try:
                records.PROGRESS.write(self._run_uri, self._now())
            except (RunFailed, OSError) as error:
                log.debug("progress could not be written: %s", error)
            if last:
                return

    def _now(self) -> records.Progress:
        now = time.time()
        with self._lock:
            state = dict(self._state)
        step = int(state["step"])
        self._marks.append((now, step))
        while len(self._marks) > 2 and self._marks[0][0] < now - _RATE_SECONDS:
            self._marks.pop(0)
        (then, _), steps = self._marks[0], step - self._marks[0][1]
        if steps > 0 and now > then:
            rate = steps / (now - then)
            state["images_per_s"] = round(rate * self._batch_size, 2)
            state["eta_s"] = round((int(state["total_steps"]) - step) / rate, 1)
        return records.Progress(
            **state,
            time=now,
            last_checkpoint_step=max(self._saver.last_stored, state["resumed_from"]),
            last_checkpoint_time=self._saver.last_stored_at,
        )
