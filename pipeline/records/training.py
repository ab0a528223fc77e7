"""Records of a job: its specification, progress, events and result."""

from __future__ import annotations

from pydantic import Field

from pipeline.records.file import Record, Tree, Values


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


class SampleStep(Record):
    """The sample strips of one step; written last."""

    step: int | None = None
    tile: int = 0
    columns: list[str] = Field(default_factory=list)
    strips: list[str] = Field(default_factory=list)
