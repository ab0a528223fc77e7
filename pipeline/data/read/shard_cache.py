"""Local disk cache of shards from object storage, shared by the processes of a machine."""

from __future__ import annotations

import os
import re
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from agit_core.errors import RunFailed
from pipeline import storage

_RETRY_SECONDS = 1.0
_HOPE_SECONDS = 1.0
# names of running downloads: PID and size, then optionally the temporary suffix of storage.download_file
_COMING = re.compile(r"\.(\d+)-(\d+)\.part(\.\w+\.part)?$")
_TRIES = 2
_OPEN: weakref.WeakSet[ShardCache] = weakref.WeakSet()


def machine_folder() -> Path:
    """Cache folder shared by the processes of this machine."""
    return storage.private_folder("agit-shards")


class ShardCache:
    """Copies shards in the background, each by only one process, and limits the size of the folder.

    A shard is published under its SHA-256 once it is complete and verified: readers never see a partial shard, and a
    changed data set never finds an old one. When the folder is full, the least recently used shards are evicted; a
    process that has one open keeps it until it closes it. The open caches of a process (one per split) share the limit
    and do not evict each other's shards. If a data set does not fit, the shards beyond the limit are not cached but
    read by byte ranges.

    Args:
        folder: cache folder; may contain shards of other data sets.
        limit: size limit in bytes; 0 disables caching.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._wanted: dict[str, tuple[str, int]] = {}
        self._queue: deque[str] = deque()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._until: dict[str, int] = {}
        self._begun = 0.0
        self._arrived = 0
        self._arrival = threading.Condition()
        self._kept: dict[str, int] = {}
        self._wrong: Counter[str] = Counter()
        _OPEN.add(self)

    def want(self, shards: Sequence[tuple[str, str, int]]) -> None:
        """Start to fetch shards ``(uri, sha256, bytes)`` in this order, as far as they fit."""
        self._wanted = {uri: (sha256, size) for uri, sha256, size in shards}
        taken = {sha256: size for cache in self._siblings() for sha256, size in cache._kept.items()}
        room, until = self._limit - sum(taken.values()), 0
        for uri, sha256, size in shards:
            room -= 0 if sha256 in taken else size
            if room < 0:
                break
            self._kept[sha256] = size
            if self.path(uri) is None:
                self._queue.append(uri)
                until += size
                self._until[uri] = until
        self._begun = time.monotonic()
        if self._queue:
            self._thread = threading.Thread(target=self._fetch_all, name="shard-cache", daemon=True)
            self._thread.start()

    def path(self, uri: str) -> Path | None:
        """Path of the local copy, or None if there is none yet.

        Raises:
            RunFailed: the shard in storage does not match its checksum.
        """
        if self._wrong[uri] >= _TRIES:
            raise RunFailed(f"{uri} is not what its manifest says; check the data with 'agit data verify'")
        sha256, size = self._wanted[uri]
        path = self._folder / f"{sha256}.parquet"
        try:
            if path.stat().st_size != size:
                return None
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def seconds(self, uri: str) -> float | None:
        """Estimated seconds until the copy has arrived, by the rate so far; None if unknown or not being fetched.

        Until the first arrival, the network is assumed to be fast for a moment.
        """
        until, arrived, passed = self._until.get(uri), self._arrived, time.monotonic() - self._begun
        if until is None or self._closed.is_set():
            return None
        if not arrived:
            return 0.0 if passed < _HOPE_SECONDS else None
        return max(0, until - arrived) * passed / arrived

    def wait(self, uri: str, seconds: float) -> None:
        """Wait for the copy, at most ``seconds``."""
        with self._arrival:
            self._arrival.wait_for(lambda: self._closed.is_set() or self.path(uri) is not None, seconds)

    def close(self) -> None:
        """Stop after the current shard."""
        self._closed.set()
        _OPEN.discard(self)
        with self._arrival:
            self._arrival.notify_all()

    def _fetch_all(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        while self._queue and not self._closed.is_set():
            uri = self._queue.popleft()
            try:
                done = self.path(uri) is not None or self._fetch(uri)
            except _Wrong:
                self._wrong[uri] += 1
                done = self._wrong[uri] >= _TRIES  # not a transmission error: give up
            except (RunFailed, FileNotFoundError, OSError):
                done = False  # retried; reads by byte ranges report a persistent failure
            if done:
                with self._arrival:
                    self._arrived += self._wanted[uri][1]
                    self._arrival.notify_all()
            else:
                self._queue.append(uri)
                self._closed.wait(_RETRY_SECONDS)

    def _fetch(self, uri: str) -> bool:
        """Copy one shard; False if another process is copying it."""
        sha256, size = self._wanted[uri]
        target = self._folder / f"{sha256}.parquet"
        try:
            with FileLock(f"{target}.lock", timeout=0):
                if self.path(uri) is not None:
                    return True
                # the name tells other processes its final size
                partial = target.with_suffix(f".{os.getpid()}-{size}.part")
                with FileLock(self._folder / "size.lock"):
                    if not self._make_room(size):
                        return True
                    partial.touch()
                try:
                    storage.download_file(uri, partial)
                    if storage.sha256(partial) != sha256:
                        raise _Wrong(uri)
                    os.replace(partial, target)
                finally:
                    partial.unlink(missing_ok=True)
        except Timeout:
            return False
        with suppress(FileNotFoundError):
            Path(f"{target}.lock").unlink()
        return True

    def _make_room(self, size: int) -> bool:
        """Evict shards of other data sets, least recently used first, until ``size`` more bytes fit."""
        held = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                if path.suffix == ".parquet":
                    held.append((path.stat().st_mtime, path.stat().st_size, path))
                elif coming := _COMING.search(path.name):
                    if not _alive(int(coming[1])):
                        path.unlink()
                    elif not coming[3]:
                        held.append((path.stat().st_mtime, int(coming[2]), path))
        caches = [self, *self._siblings()]
        ours = {f"{sha256}.parquet" for cache in caches for sha256, _ in cache._wanted.values()}
        total = sum(item[1] for item in held)
        for _, used, path in sorted(held):
            if total + size <= self._limit:
                break
            if path.name not in ours and path.suffix == ".parquet":
                path.unlink(missing_ok=True)
                total -= used
        return total + size <= self._limit

    def _siblings(self) -> list[ShardCache]:
        return [cache for cache in list(_OPEN) if cache is not self and cache._folder == self._folder]


class _Wrong(Exception):
    """A complete shard with a wrong checksum."""


def _alive(pid: int) -> bool:
    """Whether a process with this id exists on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it exists and belongs to another user
    return True
