"""Launches the training job, locally or on a cluster, follows it, and restarts it after a loss.

Both ways run ``python -m pipeline.train_job SPEC_URI``. A run is identified by its configuration and data, so the same
call finds a finished run, attaches to a running job on a cluster, or resumes from the last checkpoint.
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
from pipeline.records import Run, Spec
from pipeline.train import events, lease
from pipeline.train.failures import Allowance

log = logging.getLogger(__name__)
_POLL_SECONDS = 1.0

ProgressCallback = Callable[[dict[str, Any]], None]


class Job(Protocol):
    """A started training job."""

    def wait(self, seconds: float) -> bool:
        """Wait for at most ``seconds`` while forwarding the job's output; return whether the job has ended."""
        ...

    def ended(self) -> str | None:
        """None after success, otherwise a description of how the job ended."""
        ...

    def verdict(self) -> dict[str, str] | None:
        """Cause of the failure that the job printed as its last line, if any."""
        ...

    def stop(self) -> None:
        """Stop the job and all its processes; return when they have ended."""
        ...


def train(
    config: Config, prepared_uri: str, progress: ProgressCallback | None = None, start: str | None = None
) -> Run:
    """Start or resume a run, attach to its job, or return its stored result.

    Args:
        config: ``cluster.address`` decides where the job runs.
        prepared_uri: folder of the prepared data.
        progress: called with each new ``progress.json``.
        start: see :func:`pipeline.launch.specs.spec_of`.

    Raises:
        BadInput: the configuration does not fit the data or the cluster.
        RunFailed: the job failed and the retry budget is exhausted; the same call resumes from the last checkpoint.
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
    config: Config, spec: Spec, allowance: Allowance, progress: ProgressCallback | None = None
) -> dict[str, Any]:
    """Run the job of a specification until it has written ``result.json``, with retries within the budget.

    Raises:
        BadInput, RunFailed: the cause that the job reported, or an exhausted retry budget.
    """
    run_uri = spec.run_uri
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
                raise (BadInput if verdict["kind"] == "BadInput" else RunFailed)(verdict["message"])
            kind = spec.stage or "training"
            message = f"the {kind} job ended without a result ({ended or 'reported as successful'})"
            log.warning(message)
            events.record(run_uri, "job_lost", message)
            allowance.spend(RuntimeError(message))
            time.sleep(allowance.pause)


def _start(config: Config, spec: Spec) -> Job:
    if config.cluster.address is None:
        from pipeline.launch.local import LocalJob

        return LocalJob.start(spec, _local_attempt(spec.run_uri))
    from pipeline.launch.cluster import ClusterJob

    return ClusterJob.start_or_attach(config.cluster, spec, config.train.storage_patience_s)


def _local_attempt(run_uri: str) -> int:
    """Number of the next attempt, after checking that no other job is running and cleaning up after the last one.

    Raises:
        RunFailed: another job is training this run.
    """
    from pipeline.launch.local import clear

    before = lease.refuse_second(run_uri)
    if before is None:
        return 1
    if lease.is_here(before.owner.plain()):
        clear(before.owner)
    events.record_interruption(run_uri)
    return before.attempt + 1


def _follow(job: Job, run_uri: str, progress: ProgressCallback, limit_s: int | None) -> None:
    """Wait for the job to end while forwarding its progress; stop the job if this is interrupted."""
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
                raise RunFailed(f"the job took longer than cluster.job_timeout_s ({limit_s} s)")
    except BaseException:
        job.stop()
        raise


def _newest_checkpoint(run_uri: str) -> int:
    # imported late: PyTorch takes seconds to load, which would delay the start of the job
    from pipeline.train.checkpoints import CheckpointStore

    return CheckpointStore(run_uri, keep=1).newest()


@contextlib.contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that ``finally`` blocks stop the job; keeps an existing handler."""
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
