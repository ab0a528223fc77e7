"""A registered model rebuilt from its lineage: bit for bit the same, or the differences are named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agit_core import model_folder
from agit_core.errors import BadInput
from agit_core.networks import build
from pipeline import records, reproduce, storage, tasks
from pipeline.config import Config, parse
from pipeline.records import Data, Evaluation, Run
from pipeline.registry import lineage, models
from pipeline.registry.registration import register
from tests.pipeline import pictures
from tests.pipeline.training import TINY, untrained

EVALUATION = Evaluation(
    metrics={"kid_target_a2b": 0.1, "kid_target_b2a": 0.1, "kid_mean": 0.1, "attention_coverage_a": 0.3},
    baseline={"kid_target_a2b": 0.2, "kid_target_b2a": 0.2},
)


def _config(root: Path) -> Config:
    train = TINY["train"] | {"max_steps": 12, "workers": 1, "checkpoint_every": 8}
    return parse(
        {**TINY, "storage": str(root / "state"), "train": train}
        | {"data": {"source": str(root / "photos"), "image_size": 32, "load_size": 36, "workers": 1}}
    )


def _registered(root: Path, run_of: Callable[[Config, Data], Run]) -> Path:
    """The folder, with images, a run and the model that was registered from it."""
    pictures.folder(root / "photos", pictures.FOUR)
    config = _config(root)
    data = tasks.prepare(config)
    run = run_of(config, data)
    register(config, run.uri, EVALUATION, lineage.of(config, data, run))
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _registered(tmp_path_factory.mktemp("trained"), tasks.train)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where nothing depends on what was trained."""
    return _registered(tmp_path_factory.mktemp("untrained"), untrained)


@pytest.mark.long
def test_the_same_weights_come_out_again(trained: Path) -> None:
    root = trained
    config = _config(root)
    told = reproduce.reproduce("models:/tiny@champion", config, str(root / "again"))
    assert told["identical"] is True
    assert told["differences"] == []
    assert set(told["largest_difference"].values()) == {0.0}
    assert told["checkpoint"].startswith(str(root / "again" / "runs" / told["run_id"]))
    assert told["weights_sha256"]["again"] == told["weights_sha256"]["model"]

    origin = reproduce.Origin.of("models:/tiny/1", config)
    name = next(name for name in origin.model.weights if name.startswith("generator_ab"))
    origin.model.weights[name].add_(0.5)
    run = tasks.Run(told["run_id"], "", records.Result(steps=0, checkpoint=told["checkpoint"]))
    other = reproduce.Origin(origin.uri, origin.model, {**origin.lineage, "weights_sha256": "x"})
    compared = reproduce.compare(other, run)
    assert compared["identical"] is False
    assert compared["largest_difference"]["generator_ab"] == pytest.approx(0.5, abs=1e-6)
    assert compared["largest_difference"]["generator_ba"] == 0


def test_a_source_that_changed_is_refused_with_what_changed(root: Path, tmp_path: Path) -> None:
    config = _config(root)
    photos = root / "photos"
    removed, moved = photos / "trainA/trainA-003.jpg", photos / "trainB/trainB-001.jpg"
    kept = removed.read_bytes()
    removed.unlink()
    shutil.move(moved, photos / "trainA" / moved.name)
    try:
        with pytest.raises(BadInput) as caught:
            reproduce.reproduce("models:/tiny/1", config, str(tmp_path / "again"))
        sentence = str(caught.value)
        assert "1 removed" in sentence
        assert "trainA/trainA-003.jpg" in sentence
        assert "trainB/trainB-001.jpg -> trainA/trainB-001.jpg" in sentence
        assert "--from-prepared" in sentence
        origin = reproduce.Origin.of("models:/tiny/1", config)
        again = reproduce.settings(origin, str(tmp_path / "again"))
        prepared = reproduce.data(origin, again, from_prepared=True)
        assert prepared.manifest.fingerprint == origin.lineage["data_fingerprint"]
    finally:
        removed.write_bytes(kept)
        shutil.move(photos / "trainA" / moved.name, moved)


def test_other_code_and_libraries_are_told(root: Path) -> None:
    origin = reproduce.Origin.of("models:/tiny/1", _config(root))
    assert reproduce.differences(origin) == []
    told = dict(origin.lineage) | {"code": {"git_commit": "0123456789abcdef", "source_sha256": "y"}}
    told |= {"packages": {**told["packages"], "torch": "1.0"}, "machine": {"cpu_cores": 512}}
    sentence = " ".join(reproduce.differences(reproduce.Origin(origin.uri, origin.model, told)))
    assert "commit 0123456789" in sentence
    assert "torch was 1.0" in sentence
    assert "cpu cores was 512" in sentence


def test_what_cannot_be_reproduced_is_told_in_one_sentence(root: Path, tmp_path: Path) -> None:
    config = _config(root)
    with pytest.raises(BadInput, match="no version 7"):
        reproduce.reproduce("models:/tiny/7", config)
    origin = reproduce.Origin.of("models:/tiny/1", config)
    with pytest.raises(BadInput, match="another --storage"):
        reproduce.settings(origin, config.storage)
    run = storage.join(config.storage, "runs", str(origin.lineage["run_id"]))
    with pytest.raises(BadInput, match="is incomplete"):
        reproduce.reproduce(records.RESULT.read(run).checkpoint, config)  # type: ignore[union-attr]


@pytest.mark.long
def test_a_training_that_started_from_an_alias_starts_from_the_same_weights_again(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alias leads to the model itself by then; and the source was typed as a relative path, in another folder."""
    root = trained
    tree = _config(root).plain()
    tree["train"] |= {"start_from": "models:/tiny@challenger", "max_steps": 4}
    tree["data"]["source"] = "photos"
    monkeypatch.chdir(root)
    config = parse(tree)
    data = tasks.prepare(config)
    run = tasks.train(config, data)
    register(config, run.uri, EVALUATION, lineage.of(config, data, run))
    monkeypatch.chdir(tmp_path)
    champion, challenger = (
        models.resolve(f"models:/tiny@{alias}", config) for alias in ("champion", "challenger")
    )
    assert storage.name(challenger) == run.run_id
    origin = reproduce.Origin.of("models:/tiny@challenger", config)
    assert origin.lineage["start"]["uri"] == champion
    told = reproduce.reproduce("models:/tiny@challenger", config, "again")
    assert (told["identical"], told["differences"]) == (True, [])


class TestStart:
    """Which weights the training started from."""

    def origin(self, named: str | None, **lineage: Any) -> tuple[reproduce.Origin, Config]:
        config = parse({"train": {"start_from": named}})
        return reproduce.Origin("models/x", None, {"run_id": "tiny-1", **lineage}), config  # type: ignore[arg-type]

    def test_from_scratch_or_from_a_folder_the_configuration_says_it(self) -> None:
        for named in (None, "some/folder", "s3://bucket/model"):
            origin, config = self.origin(named)
            assert reproduce.start(origin, config, config) is None

    def test_an_alias_without_a_note_of_its_version_is_refused(self) -> None:
        origin, config = self.origin("models:/h2z@champion")
        with pytest.raises(BadInput, match="did not record the version"):
            reproduce.start(origin, config, config)

    def test_other_weights_than_then_are_refused(self, tmp_path: Path) -> None:
        method = parse(TINY).method
        weights = build(method.networks, 1).state_dict()
        model_folder.write(tmp_path / "first", "first", method, 32, weights, lineage={})
        uri = str(tmp_path / "first")
        digest = model_folder.read(uri).digest
        origin, config = self.origin("models:/h2z@champion", start={"uri": uri, "digest": digest})
        assert reproduce.start(origin, config, config) == uri
        other, _ = self.origin("models:/h2z@champion", start={"uri": uri, "digest": "another"})
        with pytest.raises(BadInput, match="now holds another model"):
            reproduce.start(other, config, config)
        shutil.rmtree(tmp_path / "first")
        with pytest.raises(BadInput, match="no model at"):
            reproduce.start(origin, config, config)
