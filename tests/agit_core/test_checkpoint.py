"""Checkpoints on disk: whole or refused, and loaded without running code."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agit_core import checkpoint, saved_method
from agit_core.checkpoint import CheckpointDamaged
from agit_core.config import MethodConfig
from agit_core.errors import BadInput
from tests.agit_core import tiny


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    trainer = tiny.trainer()
    tiny.train(trainer, 1)
    trainer.save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("name", ["networks.pt", "training.pt", "history.pt", "checkpoint.json"])
def test_one_flipped_bit_is_noticed(saved: Path, name: str) -> None:
    file = saved / name
    data = bytearray(file.read_bytes())
    place = data.index(b'"step": 1') + len('"step": ') if name.endswith("json") else len(data) // 2
    data[place] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(CheckpointDamaged, match=name):
        checkpoint.read(saved)


@pytest.mark.parametrize("name", ["networks.pt", "training.pt", "history.pt", "checkpoint.json"])
def test_a_missing_or_cut_file_is_noticed(saved: Path, name: str) -> None:
    file = saved / name
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointDamaged, match=name):
        checkpoint.read(saved)
    file.unlink()
    with pytest.raises(CheckpointDamaged, match=name):
        checkpoint.read(saved)


@pytest.mark.parametrize(
    "text", ["[1, 2]", "null", "{}", '{"files": {}}', "\udc00".encode("utf-8", "surrogatepass")]
)
def test_a_manifest_that_is_none_is_noticed(saved: Path, text: str | bytes) -> None:
    (saved / "checkpoint.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointDamaged):
        checkpoint.read(saved)


def test_a_failing_write_leaves_the_old_checkpoint_whole(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = checkpoint.verify(saved)
    trainer = tiny.trainer()
    tiny.train(trainer, 2)
    real = torch.save

    def fails(value: object, path: Path) -> None:
        if path.name == "training.pt":
            raise OSError("no space left on device")
        real(value, path)

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="no space"):
        trainer.save(saved)
    assert checkpoint.verify(saved) == before
    assert [p.name for p in saved.parent.iterdir()] == ["checkpoint"], "nothing half-written stays"


def test_killed_between_the_two_renames_the_old_one_is_found(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    before = checkpoint.read(saved)
    real = os.replace

    def dies(source: Path, target: Path) -> None:
        if Path(target) == saved:
            raise Killed
        real(source, target)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(Killed):
        tiny.trainer().save(saved)
    assert not saved.exists()
    assert checkpoint.read(saved).info == before.info
    assert checkpoint.read_networks(saved)[0] == before.info
    monkeypatch.undo()
    tiny.trainer().save(saved)
    assert checkpoint.read(saved).info["step"] == 0
    assert [p.name for p in saved.parent.iterdir()] == ["checkpoint"]


def test_loading_runs_no_code(saved: Path) -> None:
    owned = saved.parent / "owned"

    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(owned),)

    snapshot = checkpoint.read(saved)
    snapshot.history["a"] = Harmful()  # type: ignore[assignment]
    checkpoint.write(saved, snapshot)
    with pytest.raises(pickle.UnpicklingError):
        tiny.trainer().load(saved)
    assert not owned.exists()


def test_averaged_generators_are_those_of_inference(tmp_path: Path) -> None:
    config = tiny.method()
    trainer = tiny.trainer(replace(config, optimizer=replace(config.optimizer, average_decay=0.9)))
    tiny.train(trainer, 2)
    trainer.save(tmp_path / "c")
    info, weights = checkpoint.read_networks(tmp_path / "c")
    live = tiny.weights(trainer)
    assert info["step"] == 2
    for name, value in weights.items():
        generator = name.startswith("generator")
        assert torch.equal(value, trainer.averaged[name] if generator else live[name])
    assert not torch.equal(weights["generator_ab.0.weight"], live["generator_ab.0.weight"])


def test_the_average_follows_its_formula() -> None:
    config = tiny.method()
    trainer = tiny.trainer(replace(config, optimizer=replace(config.optimizer, average_decay=0.5)))
    name = "generator_ab.0.weight"
    expected = tiny.weights(trainer)[name]
    for step in range(12):
        trainer.train_on(tiny.next_batch(trainer))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * tiny.weights(trainer)[name]
    assert torch.allclose(trainer.averaged[name], expected, atol=1e-6)


def test_the_method_survives_json() -> None:
    config = tiny.method(tau=0.25)
    assert saved_method.from_dict(json.loads(json.dumps(saved_method.to_dict(config)))) == config
    with pytest.raises(BadInput):
        saved_method.from_dict({"networks": {"widht": 3}})


def of_the_first_version(config: MethodConfig) -> dict[str, Any]:
    """What the version that had none of the later settings saved for it."""

    def without(part: Any) -> dict[str, Any]:
        present = [f.name for f in dataclasses.fields(part) if "before" not in f.metadata]
        values = {name: getattr(part, name) for name in present}
        return {n: without(v) if dataclasses.is_dataclass(v) else v for n, v in values.items()}

    return without(config)


PRESETS = ("agit", "uaggan", "cyclegan")


def with_preset(preset: str, **networks: Any) -> MethodConfig:
    config = tiny.method()
    chosen: dict[str, Any] = {"initialisation": None, **networks}
    return replace(config, networks=replace(config.networks, preset=preset, **chosen))  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", PRESETS)
def test_what_the_first_version_saved_means_what_it_did(preset: str) -> None:
    tree = of_the_first_version(with_preset(preset))
    assert not {"revision", "initialisation"} & tree["networks"].keys()
    old = saved_method.from_dict(tree)
    assert (old.networks.revision, old.networks.initialisation) == (1, "normal")
    assert saved_method.identity(old) == tree, "runs would lose their names"
    same = saved_method.identity(with_preset(preset)) == tree
    assert same == (preset == "cyclegan"), "the others begin with other weights now, or have other layers"


def test_an_identity_does_not_depend_on_how_a_preset_is_written() -> None:
    for preset, kind in zip(PRESETS, ("truncated", "pytorch", "normal"), strict=True):
        spelt = saved_method.identity(with_preset(preset, initialisation=kind))
        assert spelt == saved_method.identity(with_preset(preset))
        assert spelt != saved_method.identity(with_preset(preset, generator_blocks=2))
    assert saved_method.identity(with_preset("agit", revision=1)) == saved_method.identity(
        with_preset("agit")
    )
    assert saved_method.identity(with_preset("uaggan", revision=1)) != saved_method.identity(
        with_preset("uaggan")
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_a_checkpoint_of_the_first_version_goes_on_or_is_refused(preset: str) -> None:
    """Weights that are there need no initialisation; other layers under the same names are another network."""
    begun = tiny.trainer(with_preset(preset, revision=1, initialisation="normal"))
    tiny.train(begun, 1)
    snapshot = begun.snapshot()
    assert snapshot is not None
    snapshot.info["method"] = of_the_first_version(begun.config)
    if preset == "uaggan":
        with pytest.raises(BadInput, match=r"networks\.revision \(1 and 2\); start a new run"):
            tiny.trainer(with_preset(preset)).restore(snapshot)
    tiny.train(begun, 3)
    resumed = tiny.trainer(with_preset(preset, revision=1))
    resumed.restore(snapshot)
    tiny.train(resumed, 3)
    assert tiny.same(tiny.everything(begun), tiny.everything(resumed))
