"""The files of a run's folder: name, type, reader and writer of each, defined only here.

A missing file reads as None. A damaged one (truncated, edited by hand) raises :class:`Damaged` with a remedy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from agit_core.errors import BadInput
from pipeline import storage

T = TypeVar("T")
Tree = dict[str, Any]
"""A JSON object, where it is not ours or has no fixed keys."""
Values = dict[str, float | None]
"""Values by name; None: not finite."""


class Damaged(BadInput):
    """A file that exists but cannot be parsed."""

    def __init__(self, uri: str, reason: str, remedy: str) -> None:
        super().__init__(f"{uri} is damaged ({reason}); {remedy}")
        self.reason = reason


class Record(BaseModel):
    """A frozen record; keeps fields of other versions, and has defaults for fields that they lack."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def plain(self) -> Tree:
        """The JSON object of the file, without fields that were never set."""
        return self.model_dump(exclude_unset=True)

    def but(self, **changes: Any) -> Self:
        """Return a copy with other values in some fields."""
        return self.model_copy(update=changes)


class Owner(Record):
    """The process or Ray job that a run belongs to; without fields: a job started by other means."""

    host: str | None = None
    pid: int | None = None
    started: int | None = None
    """Ticks since boot: distinguishes reused process ids."""
    token: str | None = None
    folder: str | None = None
    submission_id: str | None = None
    address: str | None = None
    search: str | None = None
    """Of a trial: its search."""


class Spec(Record):
    """Specification of a job: a training, a search or a stage of a run (:mod:`pipeline.launch.specs`)."""

    run_id: str
    run_uri: str = ""
    data_uri: str = ""
    config: Tree = Field(default_factory=dict)
    job: str = "pipeline.train_job"
    """The module to run."""
    stage: str = ""
    """Of :mod:`pipeline.stage_job`, with its ``arguments``."""
    arguments: Tree = Field(default_factory=dict)
    until: int | None = None
    """Of a trial: the step at which to stop."""
    attempt: int = 1
    owner: Owner = Owner()


class Event(Record):
    """An event of a run (:mod:`pipeline.train.events`)."""

    time: float
    """Unix time, by the clock of the writing machine."""
    kind: str
    message: str = ""
    host: str | None = None
    pid: int | None = None
    step: int | None = None
    redone: int | None = None
    """Of a resume: steps that are repeated."""
    workers: int | None = None
    nodes: int | None = None
    ranks: list[int] = Field(default_factory=list)


class Scores(Record):
    """One checkpoint's scores on the validation images.

    ``metrics``, by contract name, is empty if the checkpoint could not be scored; ``message`` then gives the reason.
    ``seconds`` is the duration of scoring, ``time`` its Unix time.
    """

    step: int
    metrics: Values = Field(default_factory=dict)
    seconds: float = 0.0
    time: float = 0.0
    message: str = ""


class Validation(Record):
    """Summary of the scores of a run's checkpoints; ``metric`` None: the model was not selected by them."""

    metric: str | None
    images: dict[str, int]
    best_step: int
    best: Values
    last_step: int
    last: Values
    scored: int
    seconds: float


class Result(Record):
    """Result of a training; the presence of the file marks the run as finished.

    ``steps`` and ``checkpoint`` are always set; the rest are measurements of the last attempt.
    """

    steps: int
    checkpoint: str
    run_id: str | None = None
    total_steps: int | None = None
    epoch: int | None = None
    stage: str | None = None
    switched_at_step: int | None = None
    best_checkpoint: str | None = None
    model_checkpoint: str | None = None
    validation: Validation | None = None
    stopped_early: bool = False
    samples: list[str] = Field(default_factory=list)
    losses: Values = Field(default_factory=dict)
    mask_health: Values = Field(default_factory=dict)
    workers: int | None = None
    device: str | None = None
    resumed_from: int | None = None
    rollbacks: int = 0
    images_per_s: float | None = None
    seconds: Values = Field(default_factory=dict)

    @property
    def model(self) -> str:
        """Checkpoint to evaluate, register and export: the best by validation, or without validation the last."""
        return self.model_checkpoint or self.checkpoint

    @property
    def model_step(self) -> int:
        """Number of training steps of that checkpoint."""
        return self.validation.best_step if self.validation else self.steps


class Rival(Record):
    """The champion in another model's evaluation, scored on the same images."""

    name: str = ""
    version: int
    uri: str = ""
    weights_sha256: str | None = None
    metrics: Values = Field(default_factory=dict)
    intervals: dict[str, Any] = Field(default_factory=dict)


class ScoredModel(Record):
    """The model of an evaluation."""

    uri: str = ""
    weights_sha256: str | None = None


class Evaluation(Record):
    """Scores of a model on the test images (:func:`pipeline.evaluate.scoring.evaluate`).

    Attributes:
        uri: the folder that it was written to.
        metrics: by contract name, KID raw, with those of the identity baseline as ``do_nothing_*``; None: not finite.
        baseline: the metrics of the identity baseline.
        intervals: see :func:`pipeline.evaluate.compare.intervals`.
        per_image: rows with ``direction``, ``name``, ``score`` and perhaps ``strip``, a picture's name.
        key: of what a run's scores depend on; None: these are not a run's.
    """

    format: int = 1
    uri: str = ""
    model: ScoredModel = ScoredModel()
    data: Tree = Field(default_factory=dict)
    metrics: Values = Field(default_factory=dict)
    baseline: Values = Field(default_factory=dict)
    champion: Rival | None = None
    intervals: dict[str, Any] = Field(default_factory=dict)
    baseline_intervals: dict[str, Any] = Field(default_factory=dict)
    inception: Tree = Field(default_factory=dict)
    counts: Tree = Field(default_factory=dict)
    protocol: Tree = Field(default_factory=dict)
    per_image: list[Tree] = Field(default_factory=list)
    key: str | None = None

    def quoted(self) -> Tree:
        """What a model folder and the registry keep of it."""
        kept = {"metrics", "baseline", "intervals", "counts", "inception", "protocol"}
        return self.model_dump(include=kept, exclude_unset=True)


class GateDecision(Record):
    """Decision of the gate about a version (:mod:`pipeline.registry.gate`).

    Attributes:
        passed: whether the model passed its evaluation and may become challenger.
        promoted: whether it becomes champion.
        reasons: sentences for or against it.
        against: the champion's version at the time; 0: there was none.
        basis: fingerprint of what was decided on.
        number: of the decision about this version, from 1.
    """

    passed: bool | None = None
    promoted: bool | None = None
    reasons: list[str] = Field(default_factory=list)
    against: int | None = None
    basis: str | None = None
    number: int = 1


class Tracked(Record):
    """The MLflow run of a version."""

    tracking_uri: str | None = None
    run_id: str | None = None


class Registration(Record):
    """The registered version of a run's model; ``source``: its model folder."""

    name: str
    version: int
    aliases: list[str] = Field(default_factory=list)
    decision: GateDecision = GateDecision()
    source: str
    mlflow: Tracked = Tracked()
    lineage: Tree = Field(default_factory=dict)


class RegisteredModel(Record):
    """Name, version and aliases of a model in a summary."""

    name: str
    version: int
    aliases: list[str] = Field(default_factory=list)


class Summary(Record):
    """The object that ``--json`` prints last."""

    run_id: str
    storage: str = ""
    steps: int | None = None
    metrics: Values
    model: RegisteredModel
    report: str


class Finished(Record):
    """Hash of the settings that all stages ran with (:func:`pipeline.tasks.already_done`); written last."""

    settings: str = ""


class SampleStep(Record):
    """The sample strips of one step; written last."""

    step: int | None = None
    tile: int = 0
    columns: list[str] = Field(default_factory=list)
    strips: list[str] = Field(default_factory=list)


class Progress(Record):
    """Progress of a run, updated about every two seconds; a search counts trials instead of steps."""

    state: str
    """starting, running, finished, failed, interrupted, paused, ..."""
    time: float
    """Unix time of the update, by the clock of the writing machine."""
    step: int | None = None
    total_steps: int | None = None
    epoch: int | None = None
    stage: str | None = None
    images_per_s: float | None = None
    eta_s: float | None = None
    workers: int | None = None
    attempt: int | None = None
    message: str = ""
    losses: Values = Field(default_factory=dict)
    rows: list[Tree] = Field(default_factory=list)
    """The newest rows of the metrics, which no file under ``metrics`` holds yet."""
    last_checkpoint_step: int | None = None
    last_checkpoint_time: float | None = None


class Alive(Record):
    """The heartbeat of a job."""

    time: float


class Start(Record):
    """The model that provided a run's initial weights."""

    uri: str
    digest: str


class Shard(Record):
    """A file of a data set: a shard, or the index of a split."""

    path: str
    rows: int = 0
    bytes: int
    sha256: str


class Split(Record):
    """A split of a data set; ``quarantined`` and ``notes`` have a ``name`` and a ``reason`` each."""

    rows: int = 0
    files_in: int | None = None
    quarantined: list[Tree] = Field(default_factory=list)
    notes: list[Tree] = Field(default_factory=list)
    masks: int = 0
    shards: list[Shard] = Field(default_factory=list)
    index: Shard | None = None


class NamedDomain(Record):
    name: str


class Duplicates(Record):
    """Groups of duplicates as lists of ``split/name``: the first of them, and how many there are."""

    policy: str = "report"
    groups: list[list[str]] = Field(default_factory=list)
    exact_groups: int = 0
    near: list[list[str]] = Field(default_factory=list)
    near_groups: int = 0


class Manifest(Record):
    """Manifest of a prepared data set; see :mod:`pipeline.data.format.manifest`.

    Attributes:
        leaks: pairs of a training and a test image, equal or (``near_leaks``) alike.
        left_out: files that belong to no split, with reasons.
        settings: those that shaped the shards.
        kept: number of images taken over from an earlier data set.
    """

    format: int | None = None
    name: str = ""
    fingerprint: str = ""
    created: str = ""
    source: str = ""
    image_size: int = 0
    load_size: int = 0
    domains: dict[str, NamedDomain] = Field(default_factory=dict)
    splits: dict[str, Split] = Field(default_factory=dict)
    duplicates: Duplicates = Duplicates()
    leaks: list[list[str]] = Field(default_factory=list)
    near_leaks: list[list[str]] = Field(default_factory=list)
    left_out: list[Tree] = Field(default_factory=list)
    settings: Tree = Field(default_factory=dict)
    kept: int = 0
    totals: dict[str, int] = Field(default_factory=dict)
    checksum: str | None = None

    def domain_names(self) -> tuple[str, str]:
        """Names of the two domains; A and B if unknown."""
        a, b = (self.domains[key].name if key in self.domains else key.upper() for key in "ab")
        return a, b


@dataclass(frozen=True)
class File(Generic[T]):
    """A JSON file of a folder.

    Attributes:
        kind: what it holds.
        remedy: what to do when it is damaged.
        needs: the keys without which it says nothing, with their types.
    """

    name: str
    kind: type[T]
    remedy: str
    needs: tuple[tuple[str, type | tuple[type, ...]], ...] = ()

    def uri(self, folder: str) -> str:
        return storage.join(folder, self.name)

    def exists(self, folder: str) -> bool:
        return storage.exists(self.uri(folder))

    def at(self, uri: str) -> Tree | None:
        """The JSON object as it stands in a file, None where that is not there.

        Raises:
            Damaged: it is no JSON object, or lacks what it needs.
            RunFailed: the storage does not answer.
        """
        try:
            tree = storage.read_json(uri)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except IsADirectoryError:
            raise Damaged(uri, "it is a folder", self.remedy) from None
        except BadInput:  # a storage that cannot be used is not a damaged file
            raise
        except (ValueError, RecursionError):
            raise Damaged(uri, "it is not valid JSON", self.remedy) from None
        if not isinstance(tree, dict):
            raise Damaged(uri, "it does not hold an object", self.remedy)
        for key, kind in self.needs:
            if not isinstance(tree.get(key), kind):
                raise Damaged(uri, f"it has no usable '{key}'", self.remedy)
        return tree

    def read(self, folder: str) -> T | None:
        """The content, None where the file is not there.

        Raises:
            Damaged: it is no JSON object, not one of this kind, or lacks what it needs.
            RunFailed: the storage does not answer.
        """
        return self.read_at(self.uri(folder))

    def read_at(self, uri: str) -> T | None:
        """:meth:`read`, of a file given by its own URI."""
        tree = self.at(uri)
        return None if tree is None else self.parse(tree, uri)

    def parse(self, tree: Tree, uri: str) -> T:
        """The content of a JSON object from :meth:`at`."""
        try:
            return self._adapter.validate_python(tree)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise Damaged(uri, f"{where}: {first['msg'].lower()}", self.remedy) from None

    def peek(self, folder: str) -> T | None:
        """The same for those who can do without: None also where it is damaged."""
        try:
            return self.read(folder)
        except Damaged:
            return None

    def write(self, folder: str, value: T) -> None:
        tree = value.plain() if isinstance(value, Record) else value
        storage.write_json(self.uri(folder), tree)

    @cached_property
    def _adapter(self) -> TypeAdapter[T]:
        return TypeAdapter(self.kind)


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
