"""Images that will soon be read, fetched from object storage a block at a time and held until they are."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from agit_core.errors import RunFailed

FETCHES = 16
"""Requests under way at a time: enough to fill a line of 100 ms."""


@dataclass
class _Block:
    data: Future[dict[int, bytes]]
    waiting: Counter[int] = field(default_factory=Counter)


class Blocks:
    """What is expected is fetched in this order; a block stays while an image in it is still to be read.

    Args:
        fetch: the images of one block, by index; called from several threads.
        size: images per block: image i is in block i // size.
    """

    def __init__(self, fetch: Callable[[int], dict[int, bytes]], size: int) -> None:
        self.size = size
        self._fetch = fetch
        self._blocks: dict[int, _Block] = {}
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def expect(self, index: int) -> None:
        """One :meth:`take` of this image will come."""
        number = index // self.size
        with self._lock:
            if number not in self._blocks:
                self._pool = self._pool or ThreadPoolExecutor(FETCHES, "fetch")
                self._blocks[number] = _Block(self._pool.submit(self._fetch, number))
            self._blocks[number].waiting[index] += 1

    def take(self, index: int) -> bytes | None:
        """The image, when it has arrived; None when it was not expected or could not be fetched."""
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
            return None  # the reader asks again and tells the trainer

    def forget(self) -> None:
        """Drops everything."""
        with self._lock:
            for block in self._blocks.values():
                block.data.cancel()
            self._blocks = {}

    def close(self) -> None:
        """Drops everything and ends the threads, after the request that is under way."""
        self.forget()
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def held(self) -> int:
        """Blocks in memory or on their way."""
        return len(self._blocks)
