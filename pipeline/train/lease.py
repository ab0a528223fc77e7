"""Lease on a run: at most one job trains it at a time.

The run's ``spec.json`` names the owner. Whether an owner on this machine is alive can be checked directly; any other
sends heartbeats to ``alive.json`` while its job runs, even while workers wait for resources or are restarted. A missing
heartbeat may be temporary (a suspended machine, a network outage). A launcher that starts a seemingly abandoned run
therefore takes it over by writing a new token, and every job compares its token with the stored one when it begins and
before it stores a checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from agit_core.errors import RunFailed
from pipeline import storage
from pipeline.process_identity import heartbeat, is_here, process_started, this_process
from pipeline.records import ALIVE, PROGRESS, SPEC, Alive, Owner, Progress, Spec

__all__ = ["is_here", "process_started", "this_process"]

TOKEN = "AGIT_RUN_TOKEN"
"""Environment variable with the owner's token, inherited by all descendants of a job."""
UNDER_WAY = frozenset({"starting", "running"})
"""States in ``progress.json`` of an active job (if it is alive); all others are final."""
SILENT_SECONDS = 30.0
"""Heartbeat timeout."""
_BEAT_SECONDS = 5.0
_AGAIN_SECONDS = 6.0
"""Delay before reading a heartbeat again, longer than a beat: detects progress despite clock skew."""


class TakenOver(RunFailed):
    """Another job has taken over this run."""


def refuse_second(run_uri: str, **unless: str | None) -> Spec | None:
    """Check that no other job is training this run; return its previous specification, or None.

    Args:
        unless: an owner with these fields does not count as another job.

    Raises:
        RunFailed: another job is training it.
    """
    before = SPEC.peek(run_uri)
    if before is None:
        return None
    doing = "is at work" if before.stage else "is being trained"
    owner, trained = before.owner, f"run {storage.name(run_uri)} {doing}"
    if unless and unless.items() <= owner.plain().items():
        return before
    if owner.pid is not None and is_here(owner.plain()):
        if owner.pid != os.getpid() and process_started(owner.pid) == owner.started is not None:
            raise RunFailed(f"{trained} by process {owner.pid} of this machine; wait for it or stop it")
    elif owner.plain() and _sends_heartbeats(run_uri):
        raise RunFailed(f"{trained} {_place(owner)}; wait for it or stop it")
    return before


def confirm(spec: Spec) -> None:
    """At the start of a job: check that the specification is the one that the job was started with.

    A job without a launcher (a RayJob) has no token, and its specification names no launcher.

    Raises:
        TakenOver: another launcher has written its own specification meanwhile.
    """
    token, owner = os.environ.get(TOKEN), spec.owner
    if token is None and (owner.pid is not None or owner.submission_id is not None):
        raise TakenOver(
            f"run {storage.name(spec.run_uri)} was started {_place(owner)} since its specification was made for "
            "this job; leave it to that one, or call `agit spec` again when that has ended"
        )
    if token is not None and owner.token not in {token, None}:
        raise _taken_over(spec)


def check(spec: Spec) -> None:
    """During a job: check that it still owns the run. Errors of the storage are passed on.

    Raises:
        TakenOver: it does not.
    """
    token = spec.owner.token
    now = SPEC.peek(spec.run_uri)
    if now is not None and token is not None and now.owner.token != token:
        raise _taken_over(now)


@contextlib.contextmanager
def alive(run_uri: str) -> Iterator[None]:
    """Send heartbeats for the run while the block runs."""
    with heartbeat(
        lambda: ALIVE.write(run_uri, Alive(time=time.time())), _BEAT_SECONDS, "alive", at_once=True
    ):
        yield


def last_sign(run_uri: str, progress: Progress) -> float:
    """Time of the last heartbeat or progress of a run's job, by its own clock; for an ended run, of its end."""
    beat = ALIVE.peek(run_uri) if progress.state in UNDER_WAY else None
    return progress.time if beat is None else max(progress.time, beat.time)


def _sends_heartbeats(run_uri: str) -> bool:
    """Whether a job has sent a recent heartbeat, or sends a new one while we wait (its clock may be wrong)."""
    first = _last_heartbeat(run_uri)
    if first is None or abs(time.time() - first) < SILENT_SECONDS:
        return first is not None
    time.sleep(_AGAIN_SECONDS)
    return _last_heartbeat(run_uri) not in {None, first}


def _last_heartbeat(run_uri: str) -> float | None:
    """Time of a job's last heartbeat; None if the run has ended or never started."""
    progress = PROGRESS.peek(run_uri)
    return last_sign(run_uri, progress) if progress and progress.state in UNDER_WAY else None


def _taken_over(now: Spec) -> TakenOver:
    return TakenOver(
        f"run {storage.name(now.run_uri)} was started again meanwhile, {_place(now.owner)} (attempt "
        f"{now.attempt}); this job leaves it to that one"
    )


def _place(owner: Owner) -> str:
    if owner.submission_id is not None:
        return f"by job {owner.submission_id} on {owner.address}"
    if owner.pid is not None:
        return f"by process {owner.pid} on {owner.host}"
    return "elsewhere"
