"""Starts the training job, here or on a cluster, follows it, and survives its death and our own.

Both ways run ``python -m pipeline.train_job SPEC_URI``. A run's identity is its configuration and data, so
the same call finds a finished run, attaches to a running job on a cluster, or goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from agit_core.errors import BadInput, RunFailed
from pipeline import records
from pipeline.config import Config
from pipeline.data.format import manifest
from pipeline.launch.specs import absolute, run_id, spec_of
from pipeline.records import Run
from pipeline.train import events, lease
from pipeline.train.failures import Allowance

log = logging.getLogger(__name__)
_POLL_SECONDS = 1.0

ProgressCallback = Callable[[dict[str, Any]], None]


class Job(Protocol):
    """A started training job."""

    def wait(self, seconds: float) -> bool:
        """Waits at most so long; True when the job has ended. Passes its output on meanwhile."""
        ...

    def ended(self) -> str | None:
        """None after success, otherwise how it ended, for a person."""
        ...

    def verdict(self) -> dict[str, str] | None:
        """What the job said about its failure in its last line."""
        ...

    def stop(self) -> None:
        """Ends the job and everything it started; returns when it is gone."""
        ...


def train(
    config: Config, prepared_uri: str, progress: ProgressCallback | None = None, start: str | None = None
) -> Run:
    """Trains, goes on with, attaches to or finds a run.

    Args:
        config: ``cluster.address`` decides where.
        prepared_uri: the folder of the prepared data.
        progress: is given each new ``progress.json``.
        start: see :func:`pipeline.launch.specs.spec_of`.

    Raises:
        BadInput: the configuration does not fit the data or the cluster.
        RunFailed: the job failed for good; the same call goes on from the last checkpoint.
    """
    data_uri = absolute(prepared_uri)
    name = run_id(config, manifest.read(data_uri))
    run_uri = records.run_uri(absolute(config.storage), name)
    done = records.RESULT.peek(run_uri)
    if done is not None:
        log.info("run %s is finished already; its result is used again", name)
        return Run(name, run_uri, done, reused=True)
    spec = spec_of(config, data_uri, name, start)
    allowance = Allowance(lambda: _newest_checkpoint(run_uri), config.train.max_failures)
    result = run_job(config, spec, allowance, progress)
    return Run(name, run_uri, records.Result.model_validate(result))


def run_job(
    config: Config, spec: dict[str, Any], allowance: Allowance, progress: ProgressCallback | None = None
) -> dict[str, Any]:
    """Runs the job of a specification to its ``result.json``, again for as long as the allowance lasts.

    Raises:
        BadInput, RunFailed: what the job says, or that another try is one too many.
    """
    run_uri = spec["run_uri"]
    with _sigterm_as_exception():
        while True:
            job = _start(config, spec)
            _follow(job, run_uri, progress or (lambda state: None), config.cluster.job_timeout_s)
            ended = job.ended()
            done = records.JOB_RESULT.peek(run_uri)
            if ended is None and done is not None:
                return done
            verdict = job.verdict()
            if verdict is not None:
                kind = BadInput if verdict["kind"] == "BadInput" else RunFailed
                raise kind(verdict["message"])
            message = f"the training job ended without a result ({ended or 'it says it succeeded'})"
            log.warning(message)
            events.record(run_uri, "job_lost", message)
            allowance.spend(RuntimeError(message))
            time.sleep(allowance.pause)


def _start(config: Config, spec: dict[str, Any]) -> Job:
    if config.cluster.address is None:
        from pipeline.launch.local import LocalJob

        return LocalJob.start(spec, _local_attempt(spec["run_uri"]))
    from pipeline.launch.cluster import ClusterJob

    return ClusterJob.start_or_attach(config.cluster, spec, config.train.storage_patience_s)


def _local_attempt(run_uri: str) -> int:
    """The number of the next attempt, once it is sure that no other one is running.

    Raises:
        RunFailed: another job trains this run.
    """
    from pipeline.launch.local import clear

    before = lease.refuse_second(run_uri)
    if before is None:
        return 1
    owner = before.get("owner") or {}
    if lease.is_here(owner):
        clear(owner)
    events.record_interruption(run_uri)
    return int(before["attempt"]) + 1


def _follow(job: Job, run_uri: str, progress: ProgressCallback, limit_s: int | None) -> None:
    """Waits for the job's end and passes its progress on; whatever interrupts that ends the job."""
    began, since, seen = time.monotonic(), time.time() - lease.SILENT_SECONDS, 0.0
    try:
        ended = False
        while not ended:
            ended = job.wait(_POLL_SECONDS)
            with contextlib.suppress(RunFailed):
                state = records.PROGRESS.peek(run_uri)
                if state is not None and state.time > max(seen, since):
                    seen = state.time
                    progress(state.plain())
            if limit_s is not None and time.monotonic() - began > limit_s and not ended:
                raise RunFailed(f"the training job took longer than cluster.job_timeout_s ({limit_s} s)")
    except BaseException:
        job.stop()
        raise


def _newest_checkpoint(run_uri: str) -> int:
    # imported when it is needed: PyTorch takes seconds to load, and the job is to start at once
    from pipeline.train.checkpoints import CheckpointStore

    return CheckpointStore(run_uri, keep=1).newest()


@contextlib.contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    """SIGTERM leaves through the ``finally`` blocks, so that the job is stopped, unless someone handles it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(signum: int, frame: Any) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
