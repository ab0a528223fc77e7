"""Scheduled retraining on a source that stays, grows, shrinks and is relabelled; only the second model is trained."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import retrain, storage, tasks
from pipeline.config import Config, load
from pipeline.records import Data, Manifest, Registration, Run
from pipeline.registry import models
from pipeline.retrain import Decision
from tests.pipeline.command import tiny_config
from tests.pipeline.pictures import encoded, folder, picture
from tests.pipeline.training import untrained

# Rows are taken over from the set that was prepared last, which another test may have left without one of them.
COUNTS = {"trainA": 8, "trainB": 7, "testA": 4, "testB": 3}


@dataclass(frozen=True)
class Trained:
    """A source and the storage in which a first version was trained on it."""

    root: Path
    source: Path
    version: int


def config_of(root: Path, source: Path, *more: str) -> Config:
    # a model of four steps is no better than doing nothing
    settings = (
        f"storage={root / 'storage'}",
        f"data.source={source}",
        "register.gate.better_than_nothing=false",
        "register.gate.better_than_blob=false",
    )
    return load(str(root / "tiny.yaml"), [*settings, "register.gate.minimum_coverage=0", *more])


def registered_as(config: Config, data: Data, run: Run) -> Registration:
    """What follows a training."""
    return tasks.register(config, data, run, tasks.evaluate(config, data, run))


def night(config: Config, start: retrain.Start = "champion") -> tuple[Data, Decision]:
    """What a scheduled run does first."""
    data = tasks.prepare(config)
    return data, retrain.decide(config, data, start)


@pytest.fixture(scope="module")
def first(small_inception: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("retrain")
    tiny_config(root)
    source = folder(root / "photos", COUNTS)
    data, decision = night(config_of(root, source))
    assert decision.train
    assert "no version" in decision.reason
    assert decision.config.train.start_from is None, "there is no champion to start from"
    registered = registered_as(decision.config, data, untrained(decision.config, data))
    assert registered.aliases == ["challenger", "champion"]
    return Trained(root, source, registered.version)


@pytest.fixture
def source(first: Trained, tmp_path: Path) -> Path:
    """A copy of the source, to be changed."""
    return Path(shutil.copytree(first.source, tmp_path / "photos"))


def champion_of(config: Config) -> str:
    found = models.champion(config)
    assert found is not None
    return str(found["uri"])


def test_settings_of_another_release_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that was renamed or removed since must not stop every night from then on."""
    config = load("demo", [f"storage={tmp_path}"])
    tree = config.plain()
    tree["train"]["steps_per_night"] = 3
    lineage = {"config": tree, "data_uri": "data/x", "data_fingerprint": "f"}
    storage.write_json(str(tmp_path / "model/model.json"), {"lineage": lineage})
    version = {"version": 3, "source": str(tmp_path / "model")}
    monkeypatch.setattr(models, "history", lambda _: {"versions": [version]})
    decision = retrain.decide(config, Data("data/x", Manifest(fingerprint="f"), True))
    assert (decision.train, decision.version) == (True, 3)
    assert decision.reason == "the settings of version 3 are from another release: trains"
    del tree["train"]["steps_per_night"]
    storage.write_json(str(tmp_path / "model/model.json"), {"lineage": lineage})
    assert not retrain.decide(config, Data("data/x", Manifest(fingerprint="f"), True)).train


def test_nothing_changed_trains_nothing(first: Trained, source: Path) -> None:
    data, decision = night(config_of(first.root, source))
    assert data.reused
    assert not decision.train
    assert decision.reason == f"nothing changed since version {first.version}: no training"
    assert decision.plain()["trained"] is False
    # where and how it trains, and from which weights, is no reason either
    for setting in ("train.workers=2", "train.checkpoint_every=1", "evaluate.subsets=3"):
        assert not night(config_of(first.root, source, setting))[1].train
    assert not night(config_of(first.root, source), "scratch")[1].train


def test_other_settings_train(first: Trained, source: Path) -> None:
    _, decision = night(config_of(first.root, source, "train.max_steps=5"))
    assert decision.train
    assert decision.reason == f"the settings differ from those of version {first.version}: trains"


def test_a_removed_image(first: Trained, source: Path) -> None:
    (source / "trainB/trainB-002.jpg").unlink()
    config = config_of(first.root, source)
    data, decision = night(config, "config")
    assert decision.train
    assert decision.reason == f"since version {first.version}: 1 removed: trains"
    assert decision.changes is not None
    assert decision.changes.removed == ["trainB/trainB-002.jpg"]
    assert data.manifest.splits["trainB"].rows == COUNTS["trainB"] - 1
    assert data.manifest.kept >= sum(COUNTS.values()) - 2, "nothing is encoded again"
    assert decision.config.train.start_from is None


def test_a_changed_label_of_domain(first: Trained, source: Path) -> None:
    (source / "trainA/trainA-001.jpg").rename(source / "trainB/was-a.jpg")
    data, decision = night(config_of(first.root, source))
    assert decision.train
    assert decision.reason == f"since version {first.version}: 1 moved: trains"
    assert decision.changes is not None
    assert decision.changes.moved == ["trainA/trainA-001.jpg -> trainB/was-a.jpg"]
    assert data.manifest.splits["trainA"].rows == COUNTS["trainA"] - 1
    assert data.manifest.splits["trainB"].rows == COUNTS["trainB"] + 1
    assert data.manifest.kept >= sum(COUNTS.values()) - 2, "only what moved is prepared"


def test_a_changed_picture_under_the_same_name(first: Trained, source: Path) -> None:
    (source / "testA/testA-000.jpg").write_bytes(encoded(picture(99), "JPEG"))
    _, decision = night(config_of(first.root, source))
    assert decision.reason == f"since version {first.version}: 1 changed: trains"


def test_data_that_is_gone_trains(first: Trained, source: Path) -> None:
    before = Path(tasks.prepare(config_of(first.root, source)).uri)
    (source / "trainB/trainB-003.jpg").unlink()
    data = tasks.prepare(config_of(first.root, source))
    aside = before.rename(before.with_name("aside"))
    try:
        decision = retrain.decide(config_of(first.root, source), data)
    finally:
        aside.rename(before)
    assert decision.train
    assert decision.reason == f"the data of version {first.version} no longer exists: trains"


@pytest.mark.long
def test_ten_new_images_train_from_the_champion_and_a_model_that_is_not_better_is_not_promoted(
    first: Trained, source: Path
) -> None:
    for i in range(10):
        (source / f"trainA/new-{i}.jpg").write_bytes(encoded(picture(1000 + i), "JPEG", quality=92))
    config = config_of(first.root, source, "register.gate.margin=100")
    champion = champion_of(config)
    data, decision = night(config)
    assert decision.train
    assert decision.reason == f"since version {first.version}: 10 added: trains"
    assert decision.plain()["changes"]["added"]["count"] == 10
    assert data.manifest.kept >= sum(COUNTS.values()) - 1, "only the new ones are prepared"
    assert decision.config.train.start_from == champion
    assert night(config, "scratch")[1].config.train.start_from is None

    registered = registered_as(decision.config, data, tasks.train(decision.config, data))
    assert registered.aliases == ["challenger"]
    assert champion_of(config) == champion
    reasons = registered.decision.reasons
    assert "is not better by more than 100" in reasons[0]
    told = storage.read_json(storage.join(registered.source, "model.json"))
    assert told["lineage"]["config"]["train"]["start_from"] == champion

    # the newest version is what the next night compares with, promoted or not
    again = night(config)[1]
    assert not again.train
    assert again.reason == f"nothing changed since version {registered.version}: no training"
