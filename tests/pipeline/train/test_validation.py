"""Checkpoints scored beside the training: the best one is the model, whatever is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agit_core import model_folder
from agit_core.errors import BadInput
from agit_core.scores import inception
from pipeline import config as configs
from pipeline import records, storage, tasks, train_job
from pipeline.config import Config
from pipeline.data.format import manifest as manifests
from pipeline.data.prepare.stage import prepare
from pipeline.evaluate import validation
from pipeline.evaluate.scoring import evaluate
from pipeline.launch import specs
from pipeline.records import Manifest, Result, Scores
from pipeline.registry import lineage
from pipeline.registry.identity import weights_digest
from pipeline.registry.registration import register
from pipeline.train import events as train_events
from pipeline.train import scored
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.driver import drive
from pipeline.train.events import Furthest
from tests.chaos import processes
from tests.pipeline import features
from tests.pipeline.training import TINY, prepared, spec_of, tiny, wait_for
from tests.ray_environment import job_ray

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("small_inception")]

SCORED = {"images": 2, "every": 10}


BEST_BY = "attention_inside"
"""Attention is frozen from step 15 on, so that step 20 and 30 are equal by it, and the last is never the best."""


class SmallProcess(validation.ScoringProcess):
    """With the small feature network, in the actor's own process."""

    def __init__(self) -> None:
        super().__init__()
        inception.load = features.load


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prepared(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def scratch() -> Iterator[str]:
    """A Ray of this module's own, whose scoring process has the small feature network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "ScoringProcess", SmallProcess)
        patch.setattr(validation, "_LOOK_SECONDS", 0.2)
        with job_ray(patch) as folder:
            yield folder


def validating(root: str | Path, how: dict[str, Any] | None = None, **train: Any) -> Config:
    """One worker, thirty steps, scored every ten."""
    changed = {"max_steps": 30, "workers": 1, "sample_every": 1000, "keep_checkpoints": 1, **train}
    tree = TINY | {
        "storage": str(root),
        "train": TINY["train"] | changed,
        "validation": SCORED | (how or {}),
        "evaluate": {"subsets": 2, "subset_size": 2, "bootstrap": 0, "device": "cpu"},
        "register": {
            "gate": {"better_than_nothing": False, "better_than_blob": False, "minimum_coverage": 0.0}
        },
    }
    return configs.parse(tree)


def job(config: Config, data: str, scratch: str) -> tuple[str, Result]:
    """What :func:`pipeline.train_job.run` does on the Ray that is there."""
    spec = spec_of(config, data)
    with validation.beside(spec, config) as scorer:
        result = drive(spec, config, scratch)
        if scorer is not None:
            result = scorer.finish(result, lambda text: None)
    train_job.finish(spec, result)
    found = records.RESULT.read(spec.run_uri)
    assert found is not None
    return spec.run_uri, found


@pytest.fixture(scope="module")
def undisturbed(data: str, scratch: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Result]:
    return job(validating(tmp_path_factory.mktemp("calm"), best_by=BEST_BY), data, scratch)


def curve(run_uri: str) -> dict[int, dict[str, Any]]:
    return {step: one.metrics for step, one in records.read_scores(run_uri).items()}


def test_the_best_checkpoint_is_the_model_and_not_the_last(undisturbed: tuple[str, Result]) -> None:
    run_uri, result = undisturbed
    scores = curve(run_uri)
    assert list(scores) == [10, 20, 30]
    assert all(one["kid_target"] is not None and one["attention_iou_blob_a"] for one in scores.values())
    assert result.validation is not None
    values = {step: one["attention_inside_a"] + one["attention_inside_b"] for step, one in scores.items()}
    best = max(values, key=values.__getitem__)
    assert values[20] == values[30]
    assert best != 30
    assert (result.validation.best_step, result.validation.last_step) == (best, 30)
    assert (result.validation.best, result.validation.last) == (scores[best], scores[30])
    assert result.validation.images == {"train_a": 2, "train_b": 2}
    assert storage.name(result.model) == f"step-{best:08d}"
    assert CheckpointStore(run_uri, 1).steps() == [30, best], "the others went once they were scored"


def test_the_best_one_is_evaluated_and_registered(
    undisturbed: tuple[str, Result], data: str, tmp_path: Path
) -> None:
    run_uri, result = undisturbed
    config = validating(Path(run_uri).parents[1], best_by=BEST_BY)
    digest = weights_digest(model_folder.read(result.model))
    evaluation = evaluate(config, run_uri, data)
    assert evaluation.model.plain() == {"uri": result.model, "weights_sha256": digest}
    manifest = manifests.read(data)
    run = records.Run(result.run_id or "", run_uri, result)
    origin = lineage.of(config, records.Data(data, manifest, True), run)
    assert (origin["checkpoint"], origin["steps"]) == (result.model, result.model_step)
    registered = register(config, run_uri, evaluation, origin)
    assert weights_digest(model_folder.read(registered.source)) == digest
    assert weights_digest(model_folder.read(result.checkpoint)) != digest
    assert tasks._evaluation_key(config, manifest, result) != tasks._evaluation_key(
        config, manifest, result.model_copy(update={"model_checkpoint": None})
    )


@pytest.mark.long
@pytest.mark.parametrize("kind", ["worker", "scoring"])
def test_kills_change_neither_scores_nor_choice(
    kind: str, undisturbed: tuple[str, Result], data: str, scratch: str, tmp_path: Path
) -> None:
    config = validating(tmp_path, best_by=BEST_BY)
    run_uri = spec_of(config, data).run_uri

    def kill() -> None:
        if kind == "worker":
            wait_for(lambda: Furthest(run_uri).step >= 5, "step 5")
            os.kill(processes.of_kind("worker", os.getpid())[0], signal.SIGKILL)
        else:
            os.kill(wait_for(scoring_processes, "the scoring process")[0], signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        _, result = job(config, data, scratch)
        killed.result()
    calm_uri, calm = undisturbed
    assert curve(run_uri) == curve(calm_uri)
    assert result.validation is not None
    assert calm.validation is not None
    assert result.validation.best_step == calm.validation.best_step
    assert storage.name(result.model) == storage.name(calm.model)


def scoring_processes() -> list[int]:
    mine = processes.descendants(os.getpid())
    return [pid for pid in mine if "ray::SmallProcess" in processes.command(pid)]


def test_early_stopping_ends_the_run_where_it_stopped_getting_better(
    data: str, scratch: str, tmp_path: Path
) -> None:
    config = validating(tmp_path, {"early_stopping": 1}, best_by=BEST_BY, max_steps=200)
    run_uri, result = job(config, data, scratch)
    assert result.stopped_early
    assert result.steps < 200
    assert result.validation is not None
    # decided an interval later, so that scoring has that long
    assert result.steps == result.validation.best_step + 20
    kinds = [event.kind for event in train_events.read(run_uri)]
    assert "stopped_early" in kinds


def test_too_few_images_are_trained_on_all_the_same(scratch: str, tmp_path: Path) -> None:
    tree = validating(tmp_path, max_steps=5).plain()
    tree["data"]["builtin"]["train"] = 9
    config = configs.parse(tree)
    run_uri, result = job(config, prepare(config).uri, scratch)
    assert result.validation is None
    assert result.model == result.checkpoint
    event = next(event for event in train_events.read(run_uri) if event.kind == "not_validated")
    assert "of 9 and 9 training images at most 20% are held out" in event.message


# ---------------------------------------------------------------- without Ray


def test_the_first_of_equals_is_the_best_and_standing_still_is_no_hope() -> None:
    scores = {
        step: Scores(
            step=step, metrics={"kid_target": value, "attention_iou_a": 1 - value, "attention_iou_b": 0.0}
        )
        for step, value in ((10, 0.4), (20, 0.2), (30, 0.2), (40, float("nan")))
    }
    assert scored.best(scores, "kid_target") == 20
    assert scored.best(scores, "attention_iou") == 20
    assert scored.best(scores, "fid") is None
    assert scored.hopeless(scores, "kid_target", 2)
    assert not scored.hopeless(scores, "kid_target", 3)
    assert not scored.hopeless({}, "kid_target", 1)
    assert not scored.hopeless({40: scores[40]}, "kid_target", 1)


def test_a_run_without_validation_keeps_its_name_and_another_choice_of_images_has_another() -> None:
    manifest = Manifest(fingerprint="abc")
    names = {
        key: specs.run_id(config, manifest)
        for key, config in {
            "none": tiny("x"),
            "images": validating("x", max_steps=60, workers=2),
            "fewer": validating("x", {"every": 5}, max_steps=60),
            "stopping": validating("x", {"early_stopping": 2}, max_steps=60),
        }.items()
    }
    assert names["none"] == "tiny-59f79f9f"
    assert names["images"] == names["fewer"] != names["none"]
    assert len(set(names.values())) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["validation.every=10"], "set images=100 as well"),
        (["validation.images=9", "validation.early_stopping=1"], "set every as well"),
        (["train.best_by=kid_target"], "checkpoints are not scored"),
        (
            [
                "validation.images=9",
                "validation.every=10",
                "validation.early_stopping=1",
                "train.best_by=cycle",
            ],
            "watches a score, and train.best_by is cycle",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_in_a_sentence(changes: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        configs.load("demo", changes)
