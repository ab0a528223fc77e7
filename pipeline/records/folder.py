"""The files of a run's folder and of a data set by name and type; no other module spells a name."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipeline import storage
from pipeline.records.data_set import Manifest
from pipeline.records.file import File, Tree
from pipeline.records.model import Evaluation, Finished, Registration, Summary
from pipeline.records.training import Alive, Progress, Result, SampleStep, Scores, Spec, Start

_AGAIN = "delete it and run the same command again"
SPEC = File(
    "spec.json",
    Spec,
    f"{_AGAIN}, which resumes from the last checkpoint",
    (("run_id", str), ("attempt", int)),
)
PROGRESS = File("progress.json", Progress, "delete it: a job that trains writes it every two seconds")
ALIVE = File("alive.json", Alive, "delete it: a job that trains writes it every five seconds")
START = File("start.json", Start, f"{_AGAIN} in a new storage")
RESULT = File(
    "result.json",
    Result,
    "run `agit train` with the same settings, which makes it again from the last checkpoint",
)
JOB_RESULT = File("result.json", Tree, RESULT.remedy)
"""What any job leaves: a training its :data:`RESULT`, a search its ``trials``."""
EVALUATION = File(
    "evaluation.json",
    Evaluation,
    "run `agit evaluate` with the same settings, which scores the model again",
    (("metrics", dict),),
)
REGISTRATION = File(
    "registration.json",
    Registration,
    "run `agit run` with the same settings, which finds the registered version again",
)
SUMMARY = File("summary.json", Summary, f"{_AGAIN}, which writes it again")
SEARCH_SUMMARY = File("summary.json", Tree, SUMMARY.remedy)
"""What ``agit tune --json`` printed last."""
DONE = File("done.json", Finished, "delete it: the next run of the same settings writes it")
SAMPLE_STEP = File("samples.json", SampleStep, "delete the folder: its pictures may be incomplete")
MANIFEST = File("manifest.json", Manifest, "delete the folder and prepare the data again")
REPORT = "report.html"
BEST_PRESET = "best.yaml"
"""Of a search: the best trial's configuration."""
METRICS, SAMPLES, PICTURES, EVENTS, CHECKPOINTS = "metrics", "samples", "evaluation", "events", "checkpoints"
"""Folders: rows of figures by step, sample strips by step, strips of the evaluation, what happened, states."""
SCORES = "scores"
"""Folder: a file of :class:`Scores` for each checkpoint that was scored."""


def run_uri(storage_uri: str, run_id: str) -> str:
    """The folder of a run."""
    return storage.join(storage_uri, "runs", run_id)


def sample_folder(run_uri: str, step: int) -> str:
    return storage.join(run_uri, SAMPLES, f"step-{step:08d}")


def newest_samples(run_uri: str, each: int) -> list[str]:
    """URIs of the newest sample strips, ``each`` of them per direction at most."""
    steps = storage.list_(storage.join(run_uri, SAMPLES))
    strips = [uri for uri in storage.list_(steps[-1]) if uri.endswith(".png")] if steps else []
    by_direction = ([uri for uri in strips if storage.name(uri).startswith(d)] for d in ("a2b", "b2a"))
    return [uri for some in by_direction for uri in some[:each]]


def score_file(step: int) -> File[Scores]:
    return File(f"{step:08d}.json", Scores, f"{_AGAIN} after deleting result.json too, which scores it again")


def scored_steps(run_uri: str) -> set[int]:
    """The steps whose checkpoints have been scored, without reading the scores."""
    stems = (storage.name(uri).removesuffix(".json") for uri in storage.list_(storage.join(run_uri, SCORES)))
    return {int(stem) for stem in stems if stem.isdigit()}


def read_scores(run_uri: str) -> dict[int, Scores]:
    """The scores of a run's checkpoints by step, rising; those that are damaged are left out."""
    folder = storage.join(run_uri, SCORES)
    found = ((step, score_file(step).peek(folder)) for step in sorted(scored_steps(run_uri)))
    return {step: one for step, one in found if one is not None}


def metric_rows(run_uri: str) -> tuple[list[Tree], int]:
    """The rows of ``metrics/*.jsonl`` in the order of their steps, one per step, and how many are unreadable.

    A run that was resumed has written some steps twice: the last row counts. Where a checkpoint was scored, its row has
    the scores as ``validation``.
    """
    files = [uri for uri in storage.list_(storage.join(run_uri, METRICS)) if uri.endswith(".jsonl")]
    rows: dict[int, Tree] = {}
    unreadable = 0
    for data in storage.each(storage.read_bytes, files):
        for line in data.decode(errors="replace").splitlines():
            try:
                row = json.loads(line)
                rows[int(row["step"])] = row
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                unreadable += bool(line.strip())
    for step, scores in read_scores(run_uri).items():
        if step in rows and scores.metrics:
            rows[step] |= {"validation": scores.metrics}
    return [rows[step] for step in sorted(rows)], unreadable


@dataclass(frozen=True)
class Data:
    """Prepared images: where they are and what their manifest says."""

    uri: str
    manifest: Manifest
    reused: bool


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    run_id: str
    uri: str
    result: Result
    reused: bool = False
