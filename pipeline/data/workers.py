"""Runs pure functions on many tasks in several processes, and hands the results back in order.

Processes and not Ray: preparing is one map over files with one writer. See tests/benchmarks/loading.py for the
comparison that decided it.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from agit_core.errors import RunFailed

T = TypeVar("T")
R = TypeVar("R")

_AHEAD_PER_WORKER = 2


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[tuple[T, R]]:
    """``(task, function(task))`` in the order of the tasks, whatever the number of workers.

    Only a few tasks per worker are under way at a time, so memory stays bounded however long the stream is;
    ``tasks`` is drawn from as they are needed. With one worker everything happens in this process.

    Raises:
        RunFailed: a worker was killed. What ``function`` raises is raised here.
    """
    if workers <= 1:
        for task in tasks:
            yield task, function(task)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of the storage client
    pool = ProcessPoolExecutor(workers, context, initializer=_follow, initargs=(os.getpid(),))
    pending: deque[tuple[T, Future[R]]] = deque()
    try:
        for task in tasks:
            pending.append((task, pool.submit(function, task)))
            if len(pending) >= workers * _AHEAD_PER_WORKER + 1:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    except BrokenProcessPool:
        raise RunFailed(
            "a preparing process was killed (out of memory?); run the same command again, "
            "with fewer data.workers if it happens again"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _follow(parent: int) -> None:
    """Ends this worker when the process that started it is gone: a killed run must not leave processes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
