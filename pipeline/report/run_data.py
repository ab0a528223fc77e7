"""What a run left in storage, read for the report; a part that is missing is noted, never an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agit_core.errors import BadInput
from pipeline import storage
from pipeline.redact import redact
from pipeline.train import events as train_events

_READERS = 8
COLUMNS = ("real", "attention", "translated", "reconstructed")
T = TypeVar("T")


@dataclass(frozen=True)
class SampleStep:
    """The fixed images at one moment of training: ``{strip name: URI}``, each strip ``columns`` wide."""

    step: int
    strips: dict[str, str]
    columns: tuple[str, ...] = COLUMNS


@dataclass
class Run:
    """Everything of one run that the report shows.

    Attributes:
        metrics: rows in the order of their steps, one per step (a resumed run repeats some).
        pictures: URIs of the strips that the evaluation kept, by base name.
        missing: one sentence for every part that is not there, in the order of the page.
    """

    uri: str
    data_uri: str | None
    spec: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    progress: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    registration: dict[str, Any] | None = None
    manifest: dict[str, Any] | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    samples: list[SampleStep] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        for part in (self.result, self.spec):
            if part and part.get("run_id"):
                return str(part["run_id"])
        return storage.name(self.uri)


def read_run(run_uri: str, data_uri: str | None) -> Run:
    """Reads a run's folder and its data's manifest.

    Raises:
        BadInput: there is nothing at ``run_uri``.
        RunFailed: the storage does not answer.
    """
    present = set(storage.list_(run_uri))
    if not present:
        raise BadInput(f"there is no run at {run_uri}; give the URI of a folder below runs/")
    run = Run(run_uri, data_uri)

    def part(name: str, lacking: str | None) -> dict[str, Any] | None:
        uri = storage.join(run_uri, name)
        value, reason = _json(uri) if uri in present else (None, "it was not written")
        if value is None and lacking:
            run.missing.append(f"{lacking} ({name}: {reason}).")
        return value

    run.spec = part("spec.json", None)
    run.result = part("result.json", "The training has not finished")
    run.progress = part("progress.json", None)
    run.evaluation = part("evaluation.json", "The model has not been evaluated, so there are no scores")
    run.registration = part("registration.json", "The model has not been registered")
    if data_uri:
        run.manifest, reason = _json(storage.join(data_uri, "manifest.json"))
        if run.manifest is None:
            run.missing.append(f"The data card cannot be shown (manifest.json: {reason}).")
    else:
        run.missing.append(
            "The data card cannot be shown (the run does not say what data it was trained on)."
        )
    run.metrics = _metrics(run)
    run.samples = _samples(run)
    run.events = [redact(event) for event in train_events.read(run_uri)]
    run.pictures = {
        storage.name(uri): uri
        for uri in storage.list_(storage.join(run_uri, "evaluation"))
        if uri.endswith(".png")
    }
    return run


def _json(uri: str) -> tuple[dict[str, Any] | None, str]:
    try:
        value = storage.read_json(uri)
    except FileNotFoundError:
        return None, "it is not there"
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None, "it is not valid JSON"
    # what a report may not tell is gone before anything can show it
    return (redact(value), "") if isinstance(value, dict) else (None, "it does not hold an object")


def each(function: Callable[[str], T], uris: list[str]) -> list[T]:
    """Applies a reading function to many URIs, several at a time, in order."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(function, uris))


def _metrics(run: Run) -> list[dict[str, Any]]:
    files = [uri for uri in storage.list_(storage.join(run.uri, "metrics")) if uri.endswith(".jsonl")]
    rows: dict[int, dict[str, Any]] = {}
    unreadable = 0
    for data in each(storage.read_bytes, files):
        for line in data.decode(errors="replace").splitlines():
            try:
                row = json.loads(line)
                rows[int(row["step"])] = row
            except (ValueError, TypeError, KeyError):
                unreadable += bool(line.strip())
    if not rows:
        run.missing.append("There are no curves (metrics/ holds no rows).")
    if unreadable:
        run.missing.append(f"{unreadable} rows of the metrics could not be read and are left out.")
    return [rows[step] for step in sorted(rows)]


def _samples(run: Run) -> list[SampleStep]:
    folders = [
        uri
        for uri in storage.list_(storage.join(run.uri, "samples"))
        if storage.name(uri).startswith("step-") and storage.name(uri)[5:].isdigit()
    ]
    steps = [step for step in each(_sample_step, folders) if step is not None]
    if not steps:
        run.missing.append("There are no sample pictures (samples/ holds none).")
    return sorted(steps, key=lambda s: s.step)


def _sample_step(folder: str) -> SampleStep | None:
    described, _ = _json(storage.join(folder, "samples.json"))
    if described is None:  # written last: the pictures beside it may be incomplete
        return None
    strips = [str(name) for name in described.get("strips", [])]
    if not strips:
        return None
    # base names only: a hostile file must not make the report read elsewhere
    named = {name: storage.join(folder, name) for name in strips if "/" not in name}
    return SampleStep(
        step=int(described.get("step", storage.name(folder)[5:])),
        strips=named,
        columns=tuple(described.get("columns") or COLUMNS),
    )
