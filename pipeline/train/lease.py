"""One job at most trains a run: who owns it, who is refused meanwhile, and how a job learns that it was replaced.

The owner stands in the run's ``spec.json``. Whether a process of this machine lives can be seen; any other owner tells
so in ``alive.json`` as long as its job runs, also while workers wait for their places or are started anew. Silence may
be a pause: a suspended machine, a network that was cut. So who starts a run that seems abandoned takes it over by
writing a name of its own, and a job asks whether the name there is still its own when it begins and before it stores a
checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from agit_core.errors import BadInput, RunFailed
from pipeline import storage
from pipeline.process_identity import is_here, process_started, this_process
from pipeline.records import ALIVE, PROGRESS, SPEC, Alive, Progress

__all__ = ["is_here", "process_started", "this_process"]

TOKEN = "AGIT_RUN_TOKEN"
"""Environment variable with the owner's token, in every process that a job starts, however deep."""
UNDER_WAY = frozenset({"starting", "running"})
"""States in ``progress.json`` of a run that a job is at work on, if that lives; the others are an end."""
SILENT_SECONDS = 30.0
"""A job that has told nothing for so long is taken for dead."""
_BEAT_SECONDS = 5.0
_AGAIN_SECONDS = 6.0
"""After so long, more than a beat, it is read again where the clocks of two machines may differ."""


class TakenOver(RunFailed):
    """Another job trains this run now."""


def refuse_second(run_uri: str, unless: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The specification of whoever trained this run before, once it is sure or likely that nobody does now.

    Args:
        unless: an owner of whom this is true is no other.

    Raises:
        RunFailed: somebody else trains it.
    """
    before = SPEC.peek(run_uri)
    if before is None:
        return None
    doing = "is at work" if "stage" in before else "is being trained"
    owner, trained = before.get("owner") or {}, f"run {storage.name(run_uri)} {doing}"
    if unless is not None and unless.items() <= owner.items():
        return before
    if is_here(owner):
        if owner["pid"] != os.getpid() and process_started(owner["pid"]) == owner["started"] is not None:
            raise RunFailed(f"{trained} by process {owner['pid']} of this machine; wait for it or stop it")
    elif owner and _tells(run_uri):
        raise RunFailed(f"{trained} {_place(owner)}; wait for it or stop it")
    return before


def confirm(spec: dict[str, Any]) -> None:
    """For a job that begins: the specification that it read must be the one that it was started with.

    A job that no launcher started (a RayJob) has no token, and its specification names no launcher.

    Raises:
        TakenOver: another launcher wrote its own meanwhile.
    """
    token, owner = os.environ.get(TOKEN), spec.get("owner") or {}
    if token is None and not owner.keys().isdisjoint({"pid", "submission_id"}):
        raise TakenOver(
            f"run {storage.name(spec['run_uri'])} was started {_place(owner)} since its specification was made for "
            "this job; leave it to that one, or call `agit spec` again when that has ended"
        )
    if token is not None and owner.get("token") not in {token, None}:
        raise _taken_over(spec)


def check(spec: dict[str, Any]) -> None:
    """For a job that trains: is it still the owner? A storage that does not answer raises what it raises.

    Raises:
        TakenOver: it is not.
    """
    token = (spec.get("owner") or {}).get("token")
    now = SPEC.peek(spec["run_uri"])
    if now is not None and token is not None and (now.get("owner") or {}).get("token") != token:
        raise _taken_over(now)


@contextlib.contextmanager
def alive(run_uri: str) -> Iterator[None]:
    """Tells, while the block runs, that a job of this process is at work on the run."""
    ended = threading.Event()

    def beat() -> None:
        while True:
            with contextlib.suppress(BadInput, RunFailed, OSError):  # the storage is away; the next one tells
                ALIVE.write(run_uri, Alive(time=time.time()))
            if ended.wait(_BEAT_SECONDS):
                return

    thread = threading.Thread(target=beat, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=2)  # no longer: whoever ends the job does not wait for a storage that is away


def last_sign(run_uri: str, progress: Progress) -> float:
    """When, by its own clock, a run's job last told anything; its last word is the end, where it came to one."""
    beat = ALIVE.peek(run_uri) if progress.state in UNDER_WAY else None
    return progress.time if beat is None else max(progress.time, beat.time)


def _tells(run_uri: str) -> bool:
    """Whether a job has told lately that it is at work, or, by a clock that may be wrong, tells while one looks."""
    first = _told(run_uri)
    if first is None or abs(time.time() - first) < SILENT_SECONDS:
        return first is not None
    time.sleep(_AGAIN_SECONDS)
    return _told(run_uri) not in {None, first}


def _told(run_uri: str) -> float | None:
    """When a job last told anything; None when the last of it was an end."""
    progress = PROGRESS.peek(run_uri)
    return last_sign(run_uri, progress) if progress and progress.state in UNDER_WAY else None


def _taken_over(now: dict[str, Any]) -> TakenOver:
    owner = now.get("owner") or {}
    return TakenOver(
        f"run {storage.name(now['run_uri'])} was started again meanwhile, {_place(owner)} (attempt "
        f"{now['attempt']}); this job leaves it to that one"
    )


def _place(owner: dict[str, Any]) -> str:
    if "submission_id" in owner:
        return f"by job {owner['submission_id']} on {owner['address']}"
    if "pid" in owner:
        return f"by process {owner['pid']} on {owner['host']}"
    return "elsewhere"
