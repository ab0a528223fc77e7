"""Runs pure functions on many tasks in several processes, and hands the results back in order.

On one machine these are processes of its own, which start faster than a Ray and move less (``make bench``
measures both beside each other). Where ``RAY_ADDRESS`` names a cluster, as it does in every Ray job
(``ray job submit -- agit prepare h2z ...``), they are Ray tasks on all of its nodes: the same functions on the
same tasks, so the same bytes.
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
    "a preparing process was killed (out of memory?); run the same command again, "
    "with fewer data.workers if it happens again"
)
_NONE_CAME = (
    "no preparing process came to work: each was killed (out of memory?), or the script that calls this does so "
    'outside of `if __name__ == "__main__":`, which new processes need; correct it, or use data.workers=1'
)


def on_cluster() -> bool:
    """Whether the work is spread over a Ray cluster."""
    return bool(os.environ.get("RAY_ADDRESS"))


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[T], R], tasks: Iterable[T], workers: int | None, most: int | None = None
) -> Iterator[tuple[T, R]]:
    """``(task, function(task))`` in the order of the tasks, whatever the number of workers.

    Only a few tasks per worker are under way at a time, so memory stays bounded however long the stream is;
    ``tasks`` is drawn from as they are needed. With one worker everything happens in this process.

    Args:
        workers: processes; default: one per core of this machine or of the cluster.
        most: more than so many would have nothing to do.

    Raises:
        BadInput: there is no cluster at ``RAY_ADDRESS``.
        RunFailed: a worker was killed. What ``function`` raises is raised here.
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
    """``(task, result(start(task)))`` with a few started ahead; those left over at an error are dropped."""
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
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of the storage client
    came = False

    def result(future: Future[R]) -> R:
        nonlocal came
        found = future.result()
        came = True
        return found

    with ProcessPoolExecutor(workers, context, initializer=_end_with, initargs=(os.getpid(),)) as pool:
        try:
            yield from _in_order(
                tasks, workers, lambda task: pool.submit(function, task), result, Future.cancel
            )
        except BrokenProcessPool:
            raise RunFailed(_KILLED if came else _NONE_CAME) from None


def _on_ray(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[tuple[T, R]]:
    import ray

    # a pure function may run again when a node is lost
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
    """Connected to the cluster; yields its number of processors."""
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
    """A killed run must not leave processes."""
    when_orphaned(parent, lambda: os._exit(1))
