"""Data of a run for the report; missing parts are recorded, not errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from agit_core.errors import BadInput
from pipeline import records, storage
from pipeline.records import Evaluation, Event, Manifest, Progress, Registration, Result, Spec, Tree
from pipeline.redact import redact
from pipeline.train import events as train_events

T = TypeVar("T")
COLUMNS = ("real", "attention", "translated", "reconstructed")


@dataclass(frozen=True)
class SampleStep:
    """Sample strips of one step: ``{strip name: URI}``; ``columns`` are the tiles of each strip."""

    step: int
    strips: dict[str, str]
    columns: tuple[str, ...] = COLUMNS


@dataclass
class Run:
    """All data of one run that the report shows.

    Attributes:
        metrics: rows sorted by step, one per step (repeated ones of resumed runs removed).
        pictures: URIs of the strips stored by the evaluation, by base name.
        missing: one sentence per missing part, in the order of the page.
    """

    uri: str
    data_uri: str | None
    spec: Spec | None = None
    result: Result | None = None
    progress: Progress | None = None
    evaluation: Evaluation | None = None
    registration: Registration | None = None
    manifest: Manifest | None = None
    metrics: list[Tree] = field(default_factory=list)
    samples: list[SampleStep] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        named = (part.run_id for part in (self.result, self.spec) if part is not None)
        return next(filter(None, named), storage.name(self.uri))


def read_run(run_uri: str, data_uri: str | None) -> Run:
    """Read a run's folder and its data's manifest.

    Raises:
        BadInput: there is nothing at ``run_uri``.
        RunFailed: the storage does not respond.
    """
    present = set(storage.list_(run_uri))
    if not present:
        raise BadInput(f"there is no run at {run_uri}; give the URI of a folder below runs/")
    run = Run(run_uri, data_uri)

    def part(file: records.File[T], folder: str, lacking: str | None) -> T | None:
        reason = "it was not written"
        try:
            # redact on reading, so that no part of the report can show credentials
            if (tree := file.at(file.uri(folder))) is not None:
                return file.parse(redact(tree), file.uri(folder))
        except records.Damaged as error:
            reason = error.reason
        if lacking:
            run.missing.append(f"{lacking} ({file.name}: {reason}).")
        return None

    run.spec = part(records.SPEC, run_uri, None)
    run.result = part(records.RESULT, run_uri, "The training has not finished")
    run.progress = part(records.PROGRESS, run_uri, None)
    run.evaluation = part(
        records.EVALUATION, run_uri, "The model has not been evaluated, so there are no scores"
    )
    run.registration = part(records.REGISTRATION, run_uri, "The model has not been registered")
    if data_uri:
        run.manifest = part(records.MANIFEST, data_uri, "The data card cannot be shown")
    else:
        run.missing.append("The data card cannot be shown (the run does not name its data).")
    run.metrics = _metrics(run)
    run.samples = _samples(run)
    run.events = [Event.model_validate(redact(event.plain())) for event in train_events.read(run_uri)]
    run.pictures = {
        storage.name(uri): uri
        for uri in storage.list_(storage.join(run_uri, records.PICTURES))
        if uri.endswith(".png")
    }
    return run


def _metrics(run: Run) -> list[Tree]:
    rows, unreadable = records.metric_rows(run.uri)
    if not rows:
        run.missing.append("There are no curves (metrics/ holds no rows).")
    if unreadable:
        run.missing.append(f"{unreadable} rows of the metrics could not be read and are left out.")
    return rows


def _samples(run: Run) -> list[SampleStep]:
    folders = [
        uri
        for uri in storage.list_(storage.join(run.uri, records.SAMPLES))
        if storage.name(uri).startswith("step-") and storage.name(uri)[5:].isdigit()
    ]
    steps = [step for step in storage.each(_sample_step, folders) if step is not None]
    if not steps:
        run.missing.append("There are no sample pictures (samples/ holds none).")
    return sorted(steps, key=lambda s: s.step)


def _sample_step(folder: str) -> SampleStep | None:
    described = records.SAMPLE_STEP.peek(folder)
    if described is None:  # written last: without it, the pictures may be incomplete
        return None
    if not described.strips:
        return None
    # base names only: a malicious file must not make the report read other paths
    named = {name: storage.join(folder, name) for name in described.strips if "/" not in name}
    return SampleStep(
        step=int(storage.name(folder)[5:]) if described.step is None else described.step,
        strips=named,
        columns=tuple(described.columns or COLUMNS),
    )
