"""What is training, how far it is, when it last stored its state, what failed and how it went on."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agit_core.errors import BadInput
from pipeline import storage, train_events

_SILENT_SECONDS = 60.0
"""A run that has not written its progress for so long is not being trained (it writes every two seconds)."""
_READERS = 8


def list_runs(storage_uri: str) -> list[dict[str, Any]]:
    """The runs under a storage root, the one that was last active first.

    Returns:
        per run: ``run_id``, ``run_uri``, ``state``, ``step``, ``total_steps``, ``stage``, ``images_per_s``,
        ``eta_s``, ``workers``, ``last_checkpoint_step``, ``message``, ``updated`` (Unix time).
    """
    folders = storage.list_(storage.join(storage_uri, "runs"))
    with ThreadPoolExecutor(_READERS) as pool:
        found = [run for run in pool.map(_overview, folders) if run is not None]
    return sorted(found, key=lambda run: float(run["updated"] or 0), reverse=True)


def status(run_uri: str) -> dict[str, Any]:
    """One run in detail: the overview, its checkpoints and everything that happened to it.

    Returns:
        the keys of :func:`list_runs` and ``checkpoints`` (steps, newest first), ``best_checkpoint_step``,
        ``failures`` (of workers, controller, job), ``steps_redone``, ``attempt``, ``job`` (who runs it),
        ``events`` (``time``, ``kind``, ``message``, ``step``, in order).

    Raises:
        BadInput: there is no such run.
    """
    overview = _overview(run_uri)
    if overview is None:
        raise BadInput(f"there is no run at {run_uri}; `agit runs` lists those in a storage")
    from pipeline.train_checkpoints import CheckpointStore

    spec, events = _json(run_uri, "spec.json") or {}, train_events.read(run_uri)
    train = spec.get("config", {}).get("train", {})
    store = CheckpointStore(run_uri, keep=1, best_by=train.get("best_by"))
    owner = spec.get("owner") or {}
    return overview | {
        "checkpoints": store.steps(),
        "best_checkpoint_step": store.best(),
        "failures": sum(event["kind"] in train_events.FAILURES for event in events),
        "steps_redone": sum(int(event.get("redone") or 0) for event in events),
        "attempt": spec.get("attempt"),
        "job": {k: owner[k] for k in ("host", "pid", "submission_id", "address") if k in owner},
        "events": events,
    }


def describe(status: dict[str, Any]) -> list[str]:
    """A run's state in a few lines for a terminal."""
    done = f"step {status['step']} of {status['total_steps']}" if status["total_steps"] else "no step yet"
    lines = [f"{status['run_id']}: {status['state']}, {done}" + _rate(status)]
    if status["last_checkpoint_step"]:
        lines.append(f"last checkpoint at step {status['last_checkpoint_step']}")
    if status["failures"]:
        lines.append(f"{status['failures']} failures, {status['steps_redone']} steps done again")
    lines += [
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(event['time']))}  {_happened(event)}"
        for event in status["events"][-20:]
    ]
    if status["state"] == "interrupted":
        lines.append("nothing trains it now; the command that started it goes on from the last checkpoint")
    return lines


def _overview(run_uri: str) -> dict[str, Any] | None:
    progress = _json(run_uri, "progress.json")
    result = _json(run_uri, "result.json")
    if progress is None and result is None and _json(run_uri, "spec.json") is None:
        return None
    seen = progress or {}
    run = {
        "run_id": storage.name(run_uri),
        "run_uri": run_uri,
        "state": _state(progress, result),
        "updated": seen.get("time"),
        "message": seen.get("message", ""),
        "step": seen.get("step", 0),
    }
    names = (
        "total_steps",
        "epoch",
        "stage",
        "images_per_s",
        "eta_s",
        "workers",
        "last_checkpoint_step",
        "losses",
    )
    run |= {name: seen.get(name) for name in names}
    if result is not None:
        run |= {
            "step": result["steps"],
            "total_steps": result["steps"],
            "last_checkpoint_step": result["steps"],
        }
    return run


def _state(progress: dict[str, Any] | None, result: dict[str, Any] | None) -> str:
    if result is not None:
        return "finished"
    if progress is None:
        return "not started"
    state = str(progress["state"])
    silent = time.time() - float(progress["time"]) > _SILENT_SECONDS
    return "interrupted" if silent and state in {"starting", "running"} else state


def _json(run_uri: str, name: str) -> dict[str, Any] | None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError):
        tree: dict[str, Any] = storage.read_json(storage.join(run_uri, name))
        return tree
    return None


def _rate(status: dict[str, Any]) -> str:
    if status["state"] != "running" or not status["images_per_s"]:
        return ""
    return f", {status['images_per_s']} images/s, {status['eta_s']:.0f} s left, {status['workers']} workers"


def _happened(event: dict[str, Any]) -> str:
    step = f" at step {event['step']}" if event.get("step") is not None else ""
    redone = f" ({event['redone']} steps done again)" if event.get("redone") else ""
    return f"{event['kind'].replace('_', ' ')}{step}{redone}" + (
        f": {event['message']}" if event["message"] else ""
    )
