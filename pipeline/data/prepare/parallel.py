"""Ordered parallel map of pure functions over processes or a Ray cluster.

On one machine it uses a process pool, which starts faster than Ray and copies less (``make bench`` compares both). If
``RAY_ADDRESS`` names a cluster, as in every Ray job (``ray job submit -- agit prepare h2z ...``), it uses Ray tasks on
all nodes: the same functions on the same tasks, hence the same bytes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from agit_core.errors import BadInput, RunFailed
from pipeline.process_identity import when_orphaned

T = TypeVar("T")
R = TypeVar("R")
W = TypeVar("W")

_AHEAD_PER_WORKER = 2
_KILLED = (
    "a preparation worker was killed (out of memory?); run the same command again, "
    "with fewer data.workers if it happens again"
)
_NONE_STARTED = (
    "no preparation worker started: each was killed (out of memory?), or the calling script lacks "
    '`if __name__ == "__main__":`, which spawned processes need; correct it, or use data.workers=1'
)


def on_cluster() -> bool:
    """Whether to use a Ray cluster."""
    return bool(os.environ.get("RAY_ADDRESS"))


def cores() -> int:
    """Number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[T], R], tasks: Iterable[T], workers: int | None, most: int | None = None
) -> Iterator[tuple[T, R]]:
    """Yield ``(task, function(task))`` in the order of the tasks, for any number of workers.

    ``tasks`` is consumed lazily: only a few tasks per worker are in flight, which bounds memory. With one worker,
    everything runs in this process. Exceptions of ``function`` are raised here.

    Args:
        workers: number of workers; default: one per core of this machine or of the cluster.
        most: upper limit for the number of workers.

    Raises:
        BadInput: there is no cluster at ``RAY_ADDRESS``.
        RunFailed: a worker was killed.
    """
    few = most is not None and most <= 1
    if on_cluster() and not few and workers != 1:
        with cluster() as size:
            yield from _on_ray(function, tasks, min(workers or size, most or size))
        return
    workers = workers or cores()
    workers = workers if most is None else min(workers, most)
    if workers <= 1:
        for task in tasks:
            yield task, function(task)
        return
    yield from _in_processes(function, tasks, workers)


def _in_order(
    tasks: Iterable[T],
    workers: int,
    start: Callable[[T], W],
    result: Callable[[W], R],
    drop: Callable[[W], Any],
) -> Iterator[tuple[T, R]]:
    """Yield ``(task, result(start(task)))``, starting a few tasks in advance; cancel pending ones after an error."""
    pending: deque[tuple[T, W]] = deque()
    try:
        for task in tasks:
            pending.append((task, start(task)))
            if len(pending) >= workers * _AHEAD_PER_WORKER + 1:
                first, work = pending.popleft()
                yield first, result(work)
        while pending:
            first, work = pending.popleft()
            yield first, result(work)
    finally:
        for _, work in pending:
            with contextlib.suppress(Exception):
                drop(work)


def _in_processes(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[tuple[T, R]]:
    context = multiprocessing.get_context("spawn")  # fork is unsafe with the storage client's threads
    started = False

    def result(future: Future[R]) -> R:
        nonlocal started
        value = future.result()
        started = True
        return value

    with ProcessPoolExecutor(workers, context, initializer=_end_with, initargs=(os.getpid(),)) as pool:
        try:
            yield from _in_order(
                tasks, workers, lambda task: pool.submit(function, task), result, Future.cancel
            )
        except BrokenProcessPool:
            raise RunFailed(_KILLED if started else _NONE_STARTED) from None


def _on_ray(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[tuple[T, R]]:
    import ray

    # retries after a lost node are safe because the functions are pure
    remote = ray.remote(function).options(num_cpus=1, max_retries=3)

    def result(reference: Any) -> R:
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None
        except ray.exceptions.RayError as error:
            raise RunFailed(f"{_KILLED} ({' '.join(str(error).split())[:200]})") from None

    yield from _in_order(tasks, workers, remote.remote, result, ray.cancel)


@contextlib.contextmanager
def cluster() -> Iterator[int]:
    """Connect to the cluster; yields its number of CPUs."""
    import ray

    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(logging_level="error", log_to_driver=False)
        except Exception as error:
            raise BadInput(
                f"there is no Ray cluster at RAY_ADDRESS {os.environ['RAY_ADDRESS']} "
                f"({' '.join(str(error).split())[:200]}); correct or unset it"
            ) from None
    try:
        yield max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        if ours:
            ray.shutdown()


def _end_with(parent: int) -> None:
    """End this worker when its parent has died."""
    when_orphaned(parent, lambda: os._exit(1))
