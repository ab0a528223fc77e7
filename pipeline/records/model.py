"""Records of a trained model: its evaluation, registration and summary."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pipeline.records.file import Record, Tree, Values


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
