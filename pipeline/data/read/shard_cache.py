"""A folder of shards from object storage on the local disk, shared by the processes of a machine."""

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
# and what a download calls it meanwhile
_COMING = re.compile(r"\.(\d+)-(\d+)\.part(\.\w+\.part)?$")
_TRIES = 2
_OPEN: weakref.WeakSet[ShardCache] = weakref.WeakSet()


def machine_folder() -> Path:
    """Where the processes of this machine keep shards together."""
    return storage.private_folder("agit-shards")


class ShardCache:
    """Copies shards in the background, one process per shard, and keeps the folder below a size.

    A shard appears under its SHA-256 when it is whole and right, so that a reader never sees half of one and a
    changed data set never finds the old one. When the folder is full, the shards unused for longest go; a
    process that has one of them open keeps it until it closes it. The open caches of a process (one per split)
    share the size and leave each other's shards alone, and nothing is evicted to make room for a set that would
    not fit as a whole: the remaining shards are read by byte ranges.

    Args:
        folder: may hold other sets' shards.
        limit: bytes; 0 caches nothing.
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
        """Starts to fetch ``(uri, sha256, bytes)``, in this order, as far as they fit."""
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
        """The local copy, or None while there is none.

        Raises:
            RunFailed: what the storage holds is not the shard.
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
        """When the copy will be here, by the pace so far; None when that is not known or it is not coming.

        In the first moment the line is taken for a fast one.
        """
        until, arrived, passed = self._until.get(uri), self._arrived, time.monotonic() - self._begun
        if until is None or self._closed.is_set():
            return None
        if not arrived:
            return 0.0 if passed < _HOPE_SECONDS else None
        return max(0, until - arrived) * passed / arrived

    def wait(self, uri: str, seconds: float) -> None:
        """Until the copy is here, or for so long."""
        with self._arrival:
            self._arrival.wait_for(lambda: self._closed.is_set() or self.path(uri) is not None, seconds)

    def close(self) -> None:
        """Stops after the shard that is on its way."""
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
                done = self._wrong[uri] >= _TRIES  # no accident on the way: given up
            except (RunFailed, FileNotFoundError, OSError):
                done = False  # reading by ranges will tell the trainer if the storage is gone for good
            if done:
                with self._arrival:
                    self._arrived += self._wanted[uri][1]
                    self._arrival.notify_all()
            else:
                self._queue.append(uri)
                self._closed.wait(_RETRY_SECONDS)

    def _fetch(self, uri: str) -> bool:
        """Copies one shard; False when another process is at it."""
        sha256, size = self._wanted[uri]
        target = self._folder / f"{sha256}.parquet"
        try:
            with FileLock(f"{target}.lock", timeout=0):
                if self.path(uri) is not None:
                    return True
                # its name tells others how large it will be
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
        """Evicts others' shards, the longest unused first, until ``size`` more bytes fit."""
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
    """A shard that arrived whole, with another checksum."""


def _alive(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True
