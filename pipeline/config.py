"""The one configuration system: a pydantic model per stage, YAML presets, ``--set a.b=c`` overrides.

``load("demo", ["data.source=./photos"])`` reads ``pipeline/configs/demo.yaml`` (or a YAML path), applies the
overrides, refuses unknown keys with the nearest valid name, and returns a frozen :class:`Config`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from agit_core import saved_method
from agit_core.config import MethodConfig
from agit_core.errors import BadInput
from pipeline.redact import redact

_NO_BUCKET = re.compile(r"[A-Za-z0-9]+:/*$|(?!file:)[A-Za-z0-9]+:///")
_ONE_SLASH = re.compile(r"[A-Za-z0-9]+:/(?!/)")
BASE = "base"
"""The key of a configuration file that names the configuration which it extends."""


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
        "squash", description="images that are no squares: squash them, as the paper does, or crop the middle"
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
        2 * 2**30, ge=1, description="memory of all workers together that a windowed shuffle may fill"
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
"""What ``train.best_by`` may name besides scores."""


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
        description="images per domain that a worker takes through the networks at once, to save memory: gradients are "
        "summed up to the batch; default: its whole share of the batch",
    )
    activation_checkpointing: bool = Field(
        False,
        description="compute generator blocks again in the backward pass instead of keeping them in memory",
    )
    workers: int = Field(1, ge=1, description="data-parallel processes (one per GPU)")
    minimum_workers: int | None = Field(
        None, ge=1, description="elastic: go on with as few as this many workers"
    )
    grow_after_s: float = Field(
        60.0, gt=0, description="elastic: seconds between looks for nodes that came (back)"
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
    keep_checkpoints: int = Field(3, ge=1, description="how many of the newest checkpoints stay")
    best_by: str | None = Field(
        "auto",
        description="what keeps one more checkpoint, the best: a score such as kid_target or attention_iou where "
        "checkpoints are scored (validation.every), or cycle, generator, discriminator or identity, the loss of both "
        "directions since the last checkpoint; auto: kid_target where they are scored, else cycle",
    )
    storage_patience_s: float = Field(
        180.0, ge=0, description="seconds that the storage may be away before the run gives up"
    )
    max_failures: int = Field(
        3,
        ge=-1,
        description="failures in a row without a new checkpoint that are survived; -1: without limit",
    )
    stop_on_collapse: bool = Field(
        False, description="end the run when a mask has collapsed (all zeros or all ones)"
    )
    rollbacks: int = Field(
        0,
        ge=0,
        description="how often a training whose losses or weights are not finite goes back to its last checkpoint, at "
        "half the learning rate each time; 0: it ends at once",
    )
    profile: str | None = Field(
        None,
        pattern=r"^\d+:\d+$",
        description="START:STOP: steps whose trace (and GPU memory) is written to the run's folder profile/",
    )
    report_to: tuple[Literal["mlflow", "tensorboard", "wandb"], ...] = Field(
        ("mlflow", "tensorboard"), description="where the run is shown while it trains; [] for nowhere"
    )
    start_from: str | None = Field(
        None, description="model URI whose weights the run starts from; default: from scratch"
    )


class ValidationConfig(Section):
    """Scores of checkpoints while a run trains, on training images that it does not train on."""

    images: int = Field(
        0,
        ge=0,
        description="training images per domain that no step sees, chosen by content; at most a fifth of a domain",
    )
    every: int | None = Field(
        None,
        ge=1,
        description="steps between scores of checkpoints on these images, made beside the training; the best by "
        "train.best_by is the model that is evaluated and registered",
    )
    early_stopping: int | None = Field(
        None, ge=1, description="end the training after this many scores in a row without a better one"
    )

    @model_validator(mode="after")
    def _has_images(self) -> ValidationConfig:
        if self.every is not None and not self.images:
            raise ValueError("every scores checkpoints on images that are held out; set images=100 as well")
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
        description="with cluster.address: processes, each with a GPU where there are any, that share the images",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"


class GateConfig(Section):
    """When a model becomes challenger, and a challenger champion (see ``pipeline.registry.gate``)."""

    metric: str = Field(
        "kid_mean", description="what decides; without a direction or domain: the mean of both"
    )
    margin: float = Field(
        0.0, ge=0, description="the metric must be better than the champion's by more than this"
    )
    beyond_noise: bool = Field(
        True, description="the difference must also be larger than its bootstrap interval"
    )
    better_than_nothing: bool = Field(
        True, description="KID to the target must beat doing nothing, in both directions"
    )
    better_than_blob: bool = Field(
        True,
        description="attention's IoU must beat that of the best fixed blob in the middle of every image, in both "
        "domains, where there are true masks",
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

    trials: int = Field(8, ge=1, description="how many; the first one is the configuration as it is")
    concurrent: int = Field(1, ge=1, description="trials that train at the same time")
    # the mean protocol of the paper favours leaving the images alone for as long as little is learnt
    metric: str = Field(
        "kid_target", description="score that decides; without a direction or domain: the mean of both"
    )
    space: dict[str, Any] = Field(
        default_factory=dict,
        description="such as {method.optimizer.learning_rate: {loguniform: [1e-4, 1e-3]}, train.batch_size: [1, 4]}",
    )
    grace_steps: int = Field(
        100, ge=1, description="ASHA compares trials at this step first and stops none before"
    )
    reduction: int = Field(
        3, ge=2, description="ASHA compares again at this many times as many steps; one in so many goes on"
    )
    images: int = Field(50, ge=2, description="test images per domain that a trial is scored on")


class Config(Section):
    """A whole run."""

    name: str = Field(
        "demo",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
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
        # each of them would be taken for a local folder: the working directory, "/", or one called "s3:"
        if not storage.strip():
            raise ValueError("is empty; give a folder or s3://bucket/prefix")
        if _NO_BUCKET.match(storage):
            raise ValueError(f"'{storage}' names no bucket or folder; give a folder or s3://bucket/prefix")
        if _ONE_SLASH.match(storage):
            raise ValueError(f"'{storage}' has one slash after the colon; write s3://bucket/prefix")
        return storage

    @model_validator(mode="after")
    def _holds_no_credentials(self) -> Config:
        # these are stored with the run and read again, by its job or by later commands
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
                f"train.best_by '{self.train.best_by}' is no loss ({', '.join(LOSSES)}), and checkpoints are not "
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


def presets() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(
        p.name.removesuffix(".yaml")
        for p in resources.files("pipeline.configs").iterdir()
        if p.name.endswith(".yaml")
    )


def load(config: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads a preset or YAML file and applies ``a.b=c`` overrides.

    A file that names another configuration as its ``base`` has all of that one's settings but those of its own.

    Raises:
        BadInput: no such preset or file, not YAML, an unknown key, a value of the wrong kind.
    """
    tree = _read(config)
    said = [_key_and_text(override) for override in overrides]
    for key, text in said:
        _put(tree, key, _value(text))
    # 2026, true and 2026-11-27 are texts where a text is wanted
    texts = _texts_wanted(tree)
    for key, text in said:
        if key in texts:
            _put(tree, key, text)
    return parse(tree, where=config)


def parse(tree: dict[str, Any], where: str = "config") -> Config:
    """Validates a nested dict; unknown keys are refused with the nearest valid name."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise BadInput(f"{where}: " + "; ".join(_explain(e) for e in error.errors())) from None


def parse_recorded(tree: dict[str, Any], where: str = "config") -> Config:
    """Validate the configuration that a finished run has recorded, perhaps with an earlier version.

    Method settings that version did not have take the value that stands for what it did.
    """
    method = saved_method.from_dict(tree.get("method", {}))
    return parse({**tree, "method": saved_method.to_dict(method)}, where)


def fingerprint(value: Any, length: int = 12) -> str:
    """A short, stable hash of JSON-ready data."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _read(config: str, extending: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a preset or file, those of its ``base`` included.

    Args:
        extending: the configurations that have led here by their ``base``.
    """
    path = Path(config)
    if config in presets():
        place = config
        text = resources.files("pipeline.configs").joinpath(f"{config}.yaml").read_text()
    elif path.suffix in {".yaml", ".yml", ".json"} or path.exists():
        if not path.is_file():
            raise BadInput(
                f"no config file at {config}; give a YAML path or one of the presets: {', '.join(presets())}"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"the config file {config} cannot be read: {error}") from None
        place = str(path.resolve())
    else:
        near = difflib.get_close_matches(config, presets(), 1)
        hint = f"did you mean '{near[0]}'?" if near else f"the presets are {', '.join(presets())}"
        raise BadInput(f"unknown config '{config}'; {hint}")
    if place in extending:
        raise BadInput("it extends itself; remove one 'base'")
    try:
        tree = _yaml(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"{config} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise BadInput(f"{config} must be a mapping of sections, not a {type(tree).__name__}")
    base = tree.pop(BASE, None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise BadInput(
            f"{config}: {BASE}: expected a preset's name or a YAML file, not {type(base).__name__}"
        )
    if base not in presets():
        base = str(path.parent / base) if Path(base).suffix or (path.parent / base).exists() else base
    try:
        return _merged(_read(base, (*extending, place)), tree)
    except BadInput as error:
        raise BadInput(f"{config}: {BASE}: {error}") from None


def _merged(base: dict[str, Any], changes: dict[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of ``base`` with the changes: sections are merged, any other value is replaced as a whole."""
    merged = dict(base)
    for key, value in changes.items():
        here, before = (*path, key), base.get(key)
        section = isinstance(value, dict) and isinstance(before, dict) and _is_section(here)
        merged[key] = _merged(before, value, here) if section else value  # type: ignore[arg-type]
    return merged


def _is_section(path: tuple[str, ...]) -> bool:
    try:
        return bool(_valid_names(list(path)))
    except (KeyError, TypeError):  # no setting of this name, which the validation refuses
        return False


class _Loader(yaml.SafeLoader):
    """YAML's safe types; a key that stands twice in a mapping, of which YAML takes the last, is refused."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if isinstance(parent, yaml.Node) and self.check_event(yaml.AliasEvent):
            anchor = self.peek_event().anchor  # type: ignore[no-untyped-call]
            if anchor in self._open:
                raise yaml.YAMLError(f"the anchor '&{anchor}' refers to itself")
        event = self.peek_event()  # type: ignore[no-untyped-call]
        anchor = None if isinstance(event, yaml.AliasEvent) else getattr(event, "anchor", None)
        self._open.append(anchor)
        node = super().compose_node(parent, index)
        self._open.pop()
        return node

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open: list[str | None] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            mark = key.start_mark
            # merging (<<) adds keys that stand elsewhere
            here = node.start_mark.index <= mark.index < node.end_mark.index
            if not here or not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            if first := seen.get(key.value):
                raise yaml.YAMLError(
                    f"'{key.value}' stands in line {first.line + 1} and again in line {mark.line + 1}; merge the two"
                )
            seen[key.value] = mark
        return super().construct_mapping(node, deep)


def _yaml(text: str) -> Any:
    """What YAML makes of a text.

    Raises:
        yaml.YAMLError, ValueError: it cannot be read, or a value cannot be built, such as a date that does not exist.
        RecursionError: it is nested too deeply.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise RecursionError("it is nested too deeply") from None
    except (
        AttributeError,
        KeyError,
        IndexError,
        TypeError,
    ):  # from YAML's own constructors, as for !!bool maybe
        raise ValueError("a value is not what its tag (!!...) says") from None


def _texts_wanted(tree: dict[str, Any]) -> set[str]:
    """Dotted keys whose values are no texts and should be."""
    try:
        Config.model_validate(tree)
    except ValidationError as error:
        return {".".join(map(str, e["loc"])) for e in error.errors() if e["type"] == "string_type"}
    return set()


def _key_and_text(override: str) -> tuple[str, str]:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise BadInput(f"--set takes key=value, such as --set train.max_steps=100, not '{override}'")
    if key.strip() == BASE:
        raise BadInput(f"--set cannot change the {BASE}; give that configuration instead")
    return key.strip(), text


def _value(text: str) -> Any:
    """What YAML takes a text for, and a little more."""
    try:
        value = _yaml(text)
    except (ValueError, RecursionError) as error:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise BadInput(
            f"--set: '{shown}' is no value that YAML can build ({error}); put a text into quotes: '\"...\"'"
        ) from None
    except yaml.YAMLError:
        value = text
    if "#" in text and not isinstance(value, dict | list):
        value = text  # a folder may be called so; nobody writes comments here
    # YAML 1.1 reads 1e-4 as a string
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value) if "e" in value.lower() and value[:1] in "+-.0123456789" else value
    return value


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise BadInput(f"--set {key}: '{parent}' is a value, not a section")
        tree = child
    tree[leaf] = value


def _explain(error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    dotted = ".".join(location)
    if error["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        names = _valid_names(location[:-1]) + ([BASE] if len(location) == 1 else [])
        near = difflib.get_close_matches(location[-1], names, 1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"valid names here: {', '.join(names)}"
        return f"unknown key '{dotted}'; {hint}"
    if error["type"] == "string_type":
        return f"{dotted}: a text is wanted, not {type(error['input']).__name__}; write it in quotes"
    text = str(error["msg"]).removeprefix("Value error, ")
    return f"{dotted}: {text}" if dotted else text


def _valid_names(path: list[str]) -> list[str]:
    node: Any = Config
    for part in path:
        if dataclasses.is_dataclass(node):
            hints = {f.name: f for f in dataclasses.fields(node)}
            factory = hints[part].default_factory
            node = type(factory()) if callable(factory) else None
        else:
            fields = {f.alias or n: f for n, f in node.model_fields.items()}
            node = fields[part].annotation
    if dataclasses.is_dataclass(node):
        return [f.name for f in dataclasses.fields(node)]
    return [f.alias or n for n, f in node.model_fields.items()] if hasattr(node, "model_fields") else []
