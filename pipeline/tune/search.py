"""Searches in storage: identity, trials and their scores so far.

``{storage}/tune/{search_id}/trials/0003.json`` is a trial's record, written after every score; the trials
themselves are ordinary runs under ``{storage}/runs``. The same configuration on the same data is the same search:
called again, it resumes; with a larger ``tune.trials``, it is extended.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import yaml

from agit_core.errors import BadInput
from pipeline import records, storage, train_job
from pipeline.config import Config, fingerprint, parse
from pipeline.data.format import manifest as manifests
from pipeline.data.read import held_out
from pipeline.data.read.sample_order import sample_plan, total_steps
from pipeline.launch import specs
from pipeline.metrics import catalog
from pipeline.records import Manifest
from pipeline.redact import redact
from pipeline.tune import space
from pipeline.tune.space import Range, Values

ENDED = ("finished", "stopped", "collapsed")
"""Final states; ``failed`` is not among them, since calling the search again retries failed trials."""


@dataclass
class Trial:
    """One trial: its changed settings, its run, and its scores.

    Attributes:
        state: ``waiting``, ``running``, or the outcome: ``finished``, ``stopped`` (by ASHA), ``collapsed``
            (a mask of zeros or ones; losses, weights or scores that are not finite), ``failed``.
        scores: rows of ``resource`` (the step on the search's common scale), ``step`` (the trial's actual step,
            which differs if the trial's batch size does and the length is set in epochs) and ``metrics``.
    """

    number: int
    values: Values
    run_id: str
    run_uri: str
    state: str = "waiting"
    message: str = ""
    scores: list[dict[str, Any]] = field(default_factory=list)

    def value(self, metric: str, resource: int | None = None) -> float | None:
        """Value of a metric at a resource, by default the last; None if it was not scored."""
        rows = [row for row in self.scores if resource in (None, row["resource"])]
        value = rows[-1]["metrics"].get(metric) if rows else None
        return None if value is None else float(value)

    @property
    def resource(self) -> int:
        return int(self.scores[-1]["resource"]) if self.scores else 0

    @property
    def step(self) -> int:
        return int(self.scores[-1]["step"]) if self.scores else 0


@dataclass(frozen=True)
class Search:
    """The fixed properties of a search, and access to its trials' records."""

    config: Config
    data_uri: str
    manifest: Manifest
    ranges: list[Range]

    @staticmethod
    def of(config: Config, data_uri: str) -> Search:
        """Build the search of a configuration on prepared data, and check every trial's configuration.

        Raises:
            BadInput: the space or the search's settings are invalid.
        """
        config, uri = _with_absolute_start(config), specs.absolute(data_uri)
        manifest = manifests.read(uri)
        search = Search(config, uri, manifest, space.ranges(config))
        catalog.check_deciding("tune.metric", config.tune.metric)
        if config.validation.early_stopping is not None:
            raise BadInput("a search stops its trials itself; leave validation.early_stopping out")
        if config.tune.grace_steps > search.total:
            raise BadInput(
                f"tune.grace_steps ({config.tune.grace_steps}) must not be larger than the {search.total} steps of "
                "a trial"
            )
        for number in range(config.tune.trials):
            train_job.check(search.config_of(number), manifest)
        return search

    @property
    def search_id(self) -> str:
        tune = self.config.tune
        identity = {
            "run": specs.run_id(self.config, self.manifest),
            "evaluate": [self.config.evaluate.subsets, self.config.evaluate.subset_size],
            "tune": tune.model_dump(mode="json", exclude={"trials", "concurrent"}) | {"images": self.images},
        }
        return f"{self.config.name}-{fingerprint(identity, 8)}"

    @property
    def uri(self) -> str:
        return storage.join(specs.absolute(self.config.storage), "tune", self.search_id)

    @property
    def total(self) -> int:
        """Steps of a full trial: the common scale on which trials are compared."""
        return _total_steps(self.config, self.data_uri, self.manifest)

    @property
    def images(self) -> int:
        """Maximum number of test images per domain for a score."""
        return min(self.config.tune.images, self.config.evaluate.max_images or self.config.tune.images)

    @property
    def rungs(self) -> list[int]:
        """Steps at which trials are compared, ending with the last step."""
        steps, at = [], self.config.tune.grace_steps
        while at < self.total:
            steps.append(at)
            at *= self.config.tune.reduction
        return [*steps, self.total]

    @property
    def lower_is_better(self) -> bool:
        return bool(catalog.lower_is_better(self.config.tune.metric))

    def values(self, number: int) -> Values:
        return space.trial_values(self.ranges, self.config.seed, number)

    def config_of(self, number: int) -> Config:
        """Configuration of a trial; for the best trial, this is the preset."""
        return space.applied(self.config, self.values(number), where=f"trial {number}")

    def steps_of(self, number: int) -> list[int]:
        """A trial's steps at the rungs, at the same share of its training as for all other trials."""
        total = _total_steps(self.config_of(number), self.data_uri, self.manifest)
        return [max(1, round(rung * total / self.total)) for rung in self.rungs]

    # ------------------------------------------------------------------ what is stored

    def record_uri(self, number: int) -> str:
        return storage.join(self.uri, "trials", f"{number:04d}.json")

    def trial(self, number: int) -> Trial:
        """The stored trial, or a new one."""
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            return Trial(**storage.read_json(self.record_uri(number)))
        run_id = specs.run_id(self.config_of(number), self.manifest)
        uri = records.run_uri(specs.absolute(self.config.storage), run_id)
        return Trial(number, self.values(number), run_id, uri)

    def store(self, trial: Trial) -> None:
        storage.write_json(self.record_uri(trial.number), vars(trial))

    def trials(self) -> list[Trial]:
        return [self.trial(number) for number in range(self.config.tune.trials)]

    def best(self, trials: list[Trial]) -> Trial | None:
        """The best of the trials that trained longest; scores at different steps are not comparable."""
        metric = self.config.tune.metric
        scored = [t for t in trials if t.state in (*ENDED, "running") and t.state != "collapsed"]
        scored = [t for t in scored if t.value(metric) is not None]
        if not scored:
            return None
        furthest = max(t.resource for t in scored)
        sign = 1 if self.lower_is_better else -1
        return min(
            (t for t in scored if t.resource == furthest),
            key=lambda t: (sign * float(t.value(metric) or 0.0), t.number),
        )


def preset(search: Search, trial: Trial) -> str:
    """The trial's full configuration as YAML for ``agit run``."""
    metric, value = search.config.tune.metric, trial.value(search.config.tune.metric)
    changed = ", ".join(f"{key} = {value}" for key, value in trial.values.items()) or "nothing changed"
    head = (
        f"# Best of {search.config.tune.trials} trials of search {search.search_id}: trial {trial.number}, "
        f"{metric} {value:.4g} on {search.images} test images at step {trial.step}.\n# {changed}\n"
    )
    return head + yaml.safe_dump(
        redact(search.config_of(trial.number).plain()), sort_keys=False, allow_unicode=True
    )


def from_spec(spec: records.Spec) -> Search:
    """The search of a job's specification."""
    return Search(
        config := parse(spec.config, where=records.SPEC.name),
        spec.data_uri,
        manifests.read(spec.data_uri),
        space.ranges(config),
    )


def _with_absolute_start(config: Config) -> Config:
    """Make ``train.start_from`` absolute: a search's identity must not depend on the working directory."""
    train = config.train.model_copy(update={"start_from": specs.start_of(config)})
    return config.model_copy(update={"train": train})


def _total_steps(config: Config, data_uri: str, manifest: Manifest) -> int:
    plan = sample_plan(config, data_uri, manifest, held_out.rows(config, data_uri, manifest))
    return total_steps(config, plan)
