"""Prefetch of images from object storage, one block at a time, held until they are read."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from agit_core.errors import RunFailed

FETCHES = 16
"""Concurrent requests: enough to hide a latency of 100 ms."""


@dataclass
class _Block:
    data: Future[dict[int, bytes]]
    waiting: Counter[int] = field(default_factory=Counter)


class Blocks:
    """Fetches blocks in the order in which their images are announced; a block is held until all are read.

    Args:
        fetch: returns the images of one block, by index; called from several threads.
        size: images per block; image i is in block i // size.
    """

    def __init__(self, fetch: Callable[[int], dict[int, bytes]], size: int) -> None:
        self.size = size
        self._fetch = fetch
        self._blocks: dict[int, _Block] = {}
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def expect(self, index: int) -> None:
        """Announce one later :meth:`take` of this image."""
        number = index // self.size
        with self._lock:
            if number not in self._blocks:
                self._pool = self._pool or ThreadPoolExecutor(FETCHES, "fetch")
                self._blocks[number] = _Block(self._pool.submit(self._fetch, number))
            self._blocks[number].waiting[index] += 1

    def take(self, index: int) -> bytes | None:
        """Wait for an announced image and return it; None if it was not announced or could not be fetched."""
        number = index // self.size
        with self._lock:
            block = self._blocks.get(number)
            if block is None or not block.waiting[index]:
                return None
            block.waiting[index] -= 1
            if not +block.waiting:
                del self._blocks[number]
        try:
            return block.data.result().get(index)
        except (RunFailed, FileNotFoundError, CancelledError):
            return None  # the reader then reads the image itself and reports the error

    def forget(self) -> None:
        """Discard everything announced and fetched."""
        with self._lock:
            for block in self._blocks.values():
                block.data.cancel()
            self._blocks = {}

    def close(self) -> None:
        """Discard everything and end the threads after their current requests."""
        self.forget()
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def held(self) -> int:
        """Number of blocks in memory or being fetched."""
        return len(self._blocks)
