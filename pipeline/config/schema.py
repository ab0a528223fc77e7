"""Every setting of the workflow: a frozen pydantic model per stage, with defaults, ranges and descriptions.

:mod:`pipeline.config.reader` makes a :class:`Config` from presets, YAML files and ``--set``.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from agit_core.config import MethodConfig
from pipeline.redact import redact

_NO_BUCKET = re.compile(r"[A-Za-z0-9]+:/*$|(?!file:)[A-Za-z0-9]+:///")
_ONE_SLASH = re.compile(r"[A-Za-z0-9]+:/(?!/)")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BuiltinConfig(Section):
    """The generated data set (``data.source: builtin``)."""

    train: int = Field(400, ge=2, description="training images per domain")
    test: int = Field(100, ge=2, description="test images per domain")
    size: int = Field(72, ge=16, description="side of the generated images, pixels")
    seed: int = 0


class DataConfig(Section):
    """Where the images come from and how they are stored (stage ``prepare``)."""

    source: str = Field(
        "builtin",
        min_length=1,
        description="folder (trainA, trainB or train/<class>), zip/tar, URL, s3:// prefix, Parquet "
        "(one file, two or a folder of them), CSV, a public set's name, or 'builtin'",
    )
    masks: str | None = Field(
        None, description="folder with masks/<split><domain>; default: 'masks' beside the images"
    )
    image_size: int = Field(
        256, ge=16, description="side of what the networks see; test images are stored at it"
    )
    load_size: int = Field(
        286, ge=16, description="side at which training images are stored; random crops are taken from it"
    )
    limit: int | None = Field(
        None, ge=1, description="at most this many training images per domain (the first by name)"
    )
    test_limit: int | None = Field(None, ge=1, description="at most this many test images per domain")
    test_fraction: float = Field(
        0.1, gt=0, lt=1, description="share held out when the source has no test split (stable by content)"
    )
    resize: Literal["squash", "crop"] = Field(
        "squash", description="non-square images: squash them, as the paper does, or crop the middle"
    )
    encoding: Literal["jpeg", "png"] = "jpeg"
    jpeg_quality: int = Field(95, ge=50, le=100)
    minimum_size: int = Field(16, ge=1, description="images with a shorter side are quarantined")
    maximum_quarantined: float = Field(
        0.2, ge=0, le=1, description="the run stops when more than this share is unusable"
    )
    duplicates: Literal["report", "drop"] = "report"
    shard_bytes: int = Field(128 * 2**20, ge=2**10, description="target size of one Parquet shard")
    rows_per_group: int = Field(64, ge=1, description="rows per Parquet row group: the unit of random access")
    workers: int | None = Field(
        None, ge=1, description="processes that decode and resize; default: one per core"
    )
    cache_bytes: int = Field(8 * 2**30, ge=0, description="local cache of shards read from object storage")
    shuffle: Literal["auto", "exact", "windowed"] = Field(
        "auto", description="auto: exact, but windowed where the set is remote and larger than cache_bytes"
    )
    shuffle_bytes: int = Field(
        2 * 2**30, ge=1, description="memory for a windowed shuffle, all workers together"
    )
    builtin: BuiltinConfig = BuiltinConfig()

    @model_validator(mode="after")
    def _sizes(self) -> DataConfig:
        if self.load_size < self.image_size:
            raise ValueError(
                f"load_size ({self.load_size}) must not be smaller than image_size ({self.image_size})"
            )
        if self.image_size % 4:
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of 4, the networks' stride")
        return self


LOSSES = ("cycle", "generator", "discriminator", "identity")
"""What ``train.best_by`` may name apart from scores."""


def resolved_best_by(best_by: str | None, score_every: int | None) -> str | None:
    """``train.best_by`` without ``auto``; ``score_every``: ``validation.every``."""
    if best_by != "auto":
        return best_by
    return "cycle" if score_every is None else "kid_target"


class TrainConfig(Section):
    """The training job (stage ``train``)."""

    epochs: int = Field(100, ge=1)
    max_steps: int | None = Field(
        None, ge=1, description="stop after this many steps, wherever the epochs stand"
    )
    batch_size: int = Field(
        1, ge=1, description="GLOBAL batch: split over the workers, so results do not depend on their number"
    )
    microbatch: int | None = Field(
        None,
        ge=1,
        description="images per domain that a worker processes at once, to save memory: gradients accumulate to the "
        "batch; default: its whole share of the batch",
    )
    activation_checkpointing: bool = Field(
        False,
        description="recompute generator blocks in the backward pass instead of keeping their activations",
    )
    workers: int = Field(1, ge=1, description="data-parallel processes (one per GPU)")
    minimum_workers: int | None = Field(
        None, ge=1, description="elastic: keep training with as few as this many workers"
    )
    grow_after_s: float = Field(
        60.0, gt=0, description="elastic: seconds between checks for new or returned nodes"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads_per_worker: int | None = Field(
        None, ge=1, description="CPU threads per worker; default: cores / workers"
    )
    prefetch_threads: int = Field(2, ge=1, description="threads that decode images ahead of the step")
    log_every: int = Field(10, ge=1, description="steps between rows of the metrics")
    sample_every: int = Field(1000, ge=1, description="steps between sample pictures")
    samples: int = Field(4, ge=0, description="fixed test images per domain in the sample pictures")
    checkpoint_every: int = Field(
        1000, ge=1, description="the most steps that a kill can cost; checkpoints are stored twice as often"
    )
    keep_checkpoints: int = Field(3, ge=1, description="how many of the newest checkpoints to keep")
    best_by: str | None = Field(
        "auto",
        description="what selects one more checkpoint to keep, the best: a score such as kid_target or attention_iou "
        "where checkpoints are scored (validation.every), or cycle, generator, discriminator or identity, the loss of "
        "both directions since the last checkpoint; auto: kid_target where they are scored, else cycle",
    )
    storage_patience_s: float = Field(
        180.0, ge=0, description="seconds to wait for unavailable storage before the run gives up"
    )
    max_failures: int = Field(
        3,
        ge=-1,
        description="consecutive failures without a new checkpoint that a run survives; -1: no limit",
    )
    stop_on_collapse: bool = Field(
        False, description="end the run once a mask has collapsed (all zeros or all ones)"
    )
    rollbacks: int = Field(
        0,
        ge=0,
        description="how many times a training with non-finite losses or weights returns to its last checkpoint, each "
        "time at half the learning rate; 0: it fails at once",
    )
    profile: str | None = Field(
        None,
        pattern=r"^\d+:\d+$",
        description="START:STOP: steps to profile; their trace and GPU memory go to profile/ in the run's folder",
    )
    report_to: tuple[Literal["mlflow", "tensorboard", "wandb"], ...] = Field(
        ("mlflow", "tensorboard"), description="where to show the run while it trains; []: nowhere"
    )
    start_from: str | None = Field(
        None, description="URI of a model whose weights the run starts from; default: from scratch"
    )


class ValidationConfig(Section):
    """Scores of checkpoints while a run trains, on training images that it does not train on."""

    images: int = Field(
        0,
        ge=0,
        description="training images per domain to hold out, chosen by content; at most a fifth of a domain",
    )
    every: int | None = Field(
        None,
        ge=1,
        description="steps between scores of checkpoints on these images, computed beside the training; the best by "
        "train.best_by is evaluated and registered",
    )
    early_stopping: int | None = Field(
        None, ge=1, description="end the training after this many consecutive scores without a better one"
    )

    @model_validator(mode="after")
    def _has_images(self) -> ValidationConfig:
        if self.every is not None and not self.images:
            raise ValueError("every scores checkpoints on held-out images; set images=100 as well")
        if self.early_stopping is not None and self.every is None:
            raise ValueError("early_stopping watches scores of checkpoints; set every as well")
        return self


class EvaluateConfig(Section):
    """Scores (stage ``evaluate``)."""

    subsets: int = Field(10, ge=1, description="KID subsets")
    subset_size: int = Field(50, ge=2, description="images per KID subset")
    max_images: int | None = Field(None, ge=2, description="test images per domain; default: all")
    batch_size: int = Field(16, ge=1)
    inception: str | None = Field(
        None, description="URI of the 2015-12-05 Inception TorchScript; default: packaged, then download"
    )
    bootstrap: int = Field(200, ge=0, description="resamples for the intervals")
    workers: int = Field(
        1,
        ge=1,
        description="with cluster.address: processes that share the images, each with a GPU if there are any",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"


class GateConfig(Section):
    """When a model becomes challenger, and a challenger champion (see ``pipeline.registry.gate``)."""

    metric: str = Field(
        "kid_mean", description="deciding metric; without a direction or domain: the mean of both"
    )
    margin: float = Field(0.0, ge=0, description="the metric must beat the champion's by more than this")
    beyond_noise: bool = Field(True, description="the difference must also exceed its bootstrap interval")
    better_than_nothing: bool = Field(
        True, description="KID to the target must beat doing nothing, in both directions"
    )
    better_than_blob: bool = Field(
        True,
        description="attention's IoU must beat the best fixed blob in the middle of every image, in both domains, "
        "where there are true masks",
    )
    maximum_regression: dict[str, float] = Field(
        default_factory=dict,
        description="how much worse than the champion's a metric may be, such as {attention_iou: 0.1}",
    )
    maximum_coverage: float = Field(0.98, description="mean attention above this is a collapse to all ones")
    minimum_coverage: float = Field(0.005, description="mean attention below this is a collapse to nothing")


class RegisterConfig(Section):
    """Experiment tracking and the model registry (stage ``register``)."""

    tracking_uri: str | None = Field(
        None, description="MLflow server; default: a SQLite file in the local state folder"
    )
    # also a folder of the storage and part of models:/NAME@champion; MLflow's queries take no quotes
    model: str | None = Field(
        None, pattern=r"^\w[\w. -]*$", description="registered model name; default: the config's name"
    )
    gate: GateConfig = GateConfig()


class ReportConfig(Section):
    title: str | None = None
    hero_images: int = Field(6, ge=1)


class ClusterConfig(Section):
    """Where preparation, training and evaluation run."""

    address: str | None = Field(
        None,
        description="Ray Jobs address (http://head:8265) of the cluster that prepares, trains and evaluates; default: "
        "this machine, with a local Ray that is started and stopped by the run",
    )
    working_dir: str | None = Field(
        None, description="code to upload with the job; default: what is installed on the cluster"
    )
    env: dict[str, str] = Field(
        default_factory=dict,
        description="environment variables of the job (no secrets: use the cluster's own)",
    )
    job_timeout_s: int | None = None


class TuneConfig(Section):
    """The search of ``agit tune``. ``space`` maps dotted config keys to ranges (see ``pipeline.tune.space``)."""

    trials: int = Field(8, ge=1, description="number of trials; the first is the configuration as it is")
    concurrent: int = Field(1, ge=1, description="trials that train at the same time")
    # the paper's mean protocol favours unchanged images while little is learnt
    metric: str = Field(
        "kid_target", description="deciding score; without a direction or domain: the mean of both"
    )
    space: dict[str, Any] = Field(
        default_factory=dict,
        description="such as {method.optimizer.learning_rate: {loguniform: [1e-4, 1e-3]}, train.batch_size: [1, 4]}",
    )
    grace_steps: int = Field(
        100, ge=1, description="ASHA first compares trials at this step and stops none before"
    )
    reduction: int = Field(
        3,
        ge=2,
        description="ASHA's reduction factor: keeps 1/N of the trials, and compares again after N times as many steps",
    )
    images: int = Field(50, ge=2, description="test images per domain that a trial is scored on")


class Config(Section):
    """A whole run."""

    name: str = Field(
        "demo",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
        max_length=200,  # with a fingerprint it names folders, whose limit is 255
        description="the data set's short name; also the registered model's",
    )
    storage: str = Field("./.agit", description="folder or s3:// prefix that holds everything the run writes")
    seed: int = 0
    data: DataConfig = DataConfig()
    method: MethodConfig = Field(default_factory=MethodConfig)
    train: TrainConfig = TrainConfig()
    validation: ValidationConfig = ValidationConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    register_: RegisterConfig = Field(RegisterConfig(), alias="register")
    report: ReportConfig = ReportConfig()
    cluster: ClusterConfig = ClusterConfig()
    tune: TuneConfig = TuneConfig()

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @field_validator("storage")
    @classmethod
    def _names_a_place(cls, storage: str) -> str:
        # each would be taken for a local folder: the working directory, "/", or one called "s3:"
        if not storage.strip():
            raise ValueError("is empty; give a folder or s3://bucket/prefix")
        if _NO_BUCKET.match(storage):
            raise ValueError(f"'{storage}' names no bucket or folder; give a folder or s3://bucket/prefix")
        if _ONE_SLASH.match(storage):
            raise ValueError(f"'{storage}' has one slash after the colon; write s3://bucket/prefix")
        return storage

    @model_validator(mode="after")
    def _holds_no_credentials(self) -> Config:
        # stored with the run and read again, by its job or by later commands
        stored = {
            "storage": (self.storage, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
            "data.masks": (self.data.masks, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
            "train.start_from": (self.train.start_from, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
            "evaluate.inception": (self.evaluate.inception, "~/.netrc"),
        }
        for name, (value, place) in stored.items():
            if redact(value) != value:
                raise ValueError(
                    f"{name} holds credentials ({redact(value)}), which would be stored; leave them out and give them "
                    f"in {place}"
                )
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> Config:
        if self.validation.early_stopping is not None and self.train.best_by in {None, *LOSSES}:
            raise ValueError(
                f"validation.early_stopping watches a score, and train.best_by is {self.train.best_by or 'null'}; set "
                "it to auto, kid_target or another score"
            )
        if self.validation.every is None and self.train.best_by not in {"auto", None, *LOSSES}:
            raise ValueError(
                f"train.best_by '{self.train.best_by}' is not a loss ({', '.join(LOSSES)}), and checkpoints are not "
                "scored; set validation.every and validation.images as well"
            )
        return self

    @property
    def best_by(self) -> str | None:
        """``train.best_by`` with ``auto`` resolved."""
        return resolved_best_by(self.train.best_by, self.validation.every)

    @property
    def deciding_score(self) -> str | None:
        """The score that chooses the model; None where checkpoints are not scored, or a loss keeps the best."""
        return None if self.best_by in {None, *LOSSES} else self.best_by

    @model_validator(mode="after")
    def _discriminator_fits(self) -> Config:
        smallest = self.method.networks.smallest_image
        if self.data.image_size < smallest:
            raise ValueError(
                f"data.image_size ({self.data.image_size}) must be at least {smallest} for the discriminators of "
                f"method.networks.preset {self.method.networks.preset}"
            )
        return self

    def plain(self) -> dict[str, Any]:
        """The resolved configuration as JSON-ready dicts; ``Config.model_validate`` reads it back."""
        return self.model_dump(mode="json", by_alias=True)


def fingerprint(value: Any, length: int = 12) -> str:
    """A short, stable hash of JSON-ready data."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
