"""Status of runs: state, progress, last checkpoint, failures and recoveries."""

from __future__ import annotations

import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

from agit_core.errors import BadInput
from pipeline import records, storage
from pipeline.config import resolved_best_by
from pipeline.progress import clock
from pipeline.records import Event, Owner, Record, Tree
from pipeline.train import events as train_events
from pipeline.train import lease

_READERS = 8
_EVENTS_SHOWN = 30
"""Events shown in a terminal."""
_WIDTH = 160
"""Characters of an event's message shown in a terminal."""
_REPORTED = records.Progress.model_fields.keys() - {"state", "time", "attempt", "rows"}


class Overview(Record):
    """A run's state and progress; times are Unix times."""

    run_id: str
    run_uri: str
    state: str
    """That of its progress; ``finished``, ``interrupted`` (no heartbeat) or ``not started`` where it differs."""
    updated: float | None = None
    message: str = ""
    step: int | None = 0
    total_steps: int | None = None
    epoch: int | None = None
    stage: str | None = None
    images_per_s: float | None = None
    eta_s: float | None = None
    workers: int | None = None
    last_checkpoint_step: int | None = None
    last_checkpoint_time: float | None = None
    losses: dict[str, float | None] | None = None

    def plain(self) -> Tree:
        """JSON-ready form, with every field."""
        return self.model_dump()


class Status(Overview):
    """Details of a run.

    Attributes:
        checkpoints: steps, newest first.
        failures: number of failures of workers, the controller and the job.
        job: the process or Ray job that owns the run.
    """

    checkpoints: list[int]
    best_checkpoint_step: int | None
    failures: int
    steps_redone: int
    attempt: int | None
    job: Owner
    events: list[Event]

    def plain(self) -> Tree:
        """JSON-ready form; of the owner and the events only what is known."""
        return self.model_dump() | {
            "job": self.job.plain(),
            "events": [event.plain() for event in self.events],
        }


def list_runs(storage_uri: str) -> list[Overview]:
    """List the runs under a storage root, most recently active first."""
    folders = storage.list_(records.run_uri(storage_uri, ""))
    with ThreadPoolExecutor(_READERS) as pool:
        runs = [run for run in pool.map(_overview, folders) if run is not None]
    return sorted(runs, key=lambda run: run.updated or 0.0, reverse=True)


def model_checkpoint(uri: str) -> str | None:
    """URI of the checkpoint that is a finished run's model; None if this is not a run's folder.

    Raises:
        BadInput: the run is not finished.
    """
    if (result := records.RESULT.read(uri)) is not None:
        return result.model
    if records.SPEC.exists(uri):
        raise BadInput(f"the run at {uri} is not finished; resume it, or give one of its checkpoint folders")
    return None


def status(run_uri: str) -> Status:
    """Read the state, checkpoints and event log of one run.

    Raises:
        BadInput: there is no such run.
    """
    overview = _overview(run_uri)
    if overview is None:
        raise BadInput(f"there is no run at {run_uri}; `agit runs` lists those in a storage")
    from pipeline.train.checkpoints import CheckpointStore

    spec, events = records.SPEC.peek(run_uri), train_events.read(run_uri)
    recorded = spec.config if spec else {}
    every = recorded.get("validation", {}).get("every")
    best_by = resolved_best_by(recorded.get("train", {}).get("best_by"), every)
    store = CheckpointStore(run_uri, keep=1, best_by=best_by)
    owner = spec.owner.plain() if spec else {}
    return Status(
        **overview.plain(),
        checkpoints=store.steps(),
        best_checkpoint_step=store.best(),
        failures=sum(event.kind in train_events.FAILURES for event in events),
        steps_redone=sum(event.redone or 0 for event in events),
        attempt=spec.attempt if spec else None,
        job=Owner(**{key: owner[key] for key in ("host", "pid", "submission_id", "address") if key in owner}),
        events=events,
    )


def rows(runs: list[Overview], now: float | None = None) -> list[dict[str, str]]:
    """Format the result of :func:`list_runs` as table rows for a terminal."""
    now = time.time() if now is None else now
    return [
        {
            "run": run.run_id,
            "state": run.state,
            "step": f"{run.step} of {run.total_steps}" if run.total_steps else "-",
            "images/s": str(run.images_per_s) if run.state == "running" and run.images_per_s else "",
            "left": clock(run.eta_s) if run.state == "running" and run.eta_s is not None else "",
            "checkpoint": f"{run.last_checkpoint_step}" if run.last_checkpoint_step else "none",
            "last seen": "" if run.updated is None else f"{_ago(now - run.updated)} ago",
            "message": run.message,
        }
        for run in runs
    ]


def describe(status: Status, now: float | None = None) -> list[str]:
    """Format the result of :func:`status` as lines for a terminal."""
    now = time.time() if now is None else now
    lines = [f"{status.run_id}: {status.state}, {_done(status)}{_rate(status)}"]
    if status.message:
        lines.append(status.message)
    lines.append(_checkpoints(status, now))
    if owner := _owner(status):
        lines.append(owner)
    if status.failures:
        lines.append(f"survived: {_count(status.failures, 'failure')}, {_redone(status.steps_redone)}")
    events = _event_lines(status.events)
    if len(events) > _EVENTS_SHOWN:
        lines.append(f"... {len(events) - _EVENTS_SHOWN} earlier events (--json lists all)")
    lines += events[-_EVENTS_SHOWN:]
    if status.state == "interrupted":
        silent = "" if status.updated is None else f" for {_ago(now - status.updated)}"
        lines.append(
            f"no process has been training this run{silent}; "
            "the command that started it resumes from the last checkpoint"
        )
    return [line for line in lines if line]


def _done(status: Status) -> str:
    if not status.total_steps:
        return "no step yet"
    share = 100 * (status.step or 0) // status.total_steps
    stage = f", stage {status.stage}" if status.stage else ""
    return f"step {status.step} of {status.total_steps} ({share} %){stage}"


def _rate(status: Status) -> str:
    if status.state != "running" or not status.images_per_s:
        return ""
    workers = _count(status.workers or 1, "worker")
    left = "" if status.eta_s is None else f", {clock(status.eta_s)} left"
    return f", {status.images_per_s} images/s on {workers}{left}"


def _checkpoints(status: Status, now: float) -> str:
    """The stored checkpoints, and the newest one's age."""
    steps = status.checkpoints
    if not steps:
        return "no checkpoint yet" if status.state == "running" else ""
    stored = status.last_checkpoint_time
    age = f", {_ago(now - stored)} ago" if stored and status.state == "running" else ""
    best = status.best_checkpoint_step
    others = "".join(f", {step}" for step in steps[1:])
    return f"checkpoints: step {steps[0]} (newest{age}){others}" + (f"; best: {best}" if best else "")


def _owner(status: Status) -> str:
    job = status.job
    if job.submission_id is not None:
        return f"job {job.submission_id} on {job.address}"
    if job.pid is not None:
        return f"attempt {status.attempt}, started by process {job.pid} of {job.host}"
    return ""


def _event_lines(events: list[Event]) -> list[str]:
    """One line per event; a resume also states the time since the first failure before it."""
    lines, failed_at = [], None
    for event in events:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time))
        lines.append(f"{when}  {_event_text(event, failed_at)}")
        if event.kind in train_events.FAILURES:
            failed_at = failed_at or event.time
        elif event.kind in {"resumed", "rolled_back"}:
            failed_at = None
    return lines


def _event_text(event: Event, failed_at: float | None) -> str:
    kind, step = event.kind.replace("_", " "), event.step
    text = kind if step is None else f"{kind} at step {step}"
    if event.kind == "resumed":
        later = f" {_ago(event.time - failed_at)} later" if failed_at else ""
        text = f"resumed from step {step}{later}, {_redone(event.redone or 0)}"
    if event.kind in {"started", "resumed"} and event.workers:
        nodes = event.nodes or 1
        text += f", {_count(event.workers, 'worker')}" + (f" on {nodes} nodes" if nodes > 1 else "")
    message = textwrap.shorten(event.message, _WIDTH, placeholder=" ...")
    return f"{text}: {message}" if message else text


def _redone(steps: int) -> str:
    return f"{_count(steps, 'step')} repeated"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _ago(seconds: float) -> str:
    """Format a duration in one unit: ``8 s``, ``2 min``, ``5 h``, ``3 days``."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0, round(seconds))} s"


def _overview(run_uri: str) -> Overview | None:
    progress = records.PROGRESS.peek(run_uri)
    result = records.RESULT.peek(run_uri)
    if progress is None and result is None and records.SPEC.peek(run_uri) is None:
        return None
    updated = lease.last_sign(run_uri, progress) if progress else None
    reported = progress.plain() if progress else {}
    run = Overview(
        run_id=storage.name(run_uri),
        run_uri=run_uri,
        state=_state(progress, result, updated),
        updated=updated,
        **{key: reported[key] for key in _REPORTED & reported.keys()},
    )
    if result is None:
        return run
    return run.but(step=result.steps, total_steps=result.steps, last_checkpoint_step=result.steps)


def _state(progress: records.Progress | None, result: records.Result | None, updated: float | None) -> str:
    if result is not None:
        return "finished"
    if progress is None or updated is None:
        return "not started"
    state = progress.state
    silent = state in lease.UNDER_WAY and time.time() - updated > lease.SILENT_SECONDS
    return "interrupted" if silent else state
